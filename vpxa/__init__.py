"""The host's agent: takes vpxd's orders over the management network and hands them to hostd; decides nothing."""
