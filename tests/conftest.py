"""For the whole suite."""

import signal

# A suite that was started in the background (nohup, `&` in a script) has inherited that Ctrl-C is ignored, and so has
# all that it starts: tests that press it in a program of ours would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
