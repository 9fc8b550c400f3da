"""The Migrate wizard in the terminal: the vSphere Client's steps, asked one after the other.

    virtual machine ─► migration type ─► compute resource ─► storage ─► networks ─► priority ─► ready to complete
                                              panel           panel      panel       panel        panel

Every step keeps what was chosen, so that "back" and "next" lose nothing; steps that don't apply are passed over
(choices.py says which). The panel "Compatibility" is vpxd's own answer to what is chosen so far: errors keep the
wizard where it is, warnings don't. Nothing is started before the last step's "Finish".

    choices.py      what is chosen, and the request that it makes       pure
    offers.py       what there is to choose from at the destination     pure
    dialog.py       numbered questions on a terminal, a line as answer
    world.py        what vpxd is asked for
    panel.py        the compatibility panel
    steps.py, storage_step.py, network_step.py, review_step.py     one function for each step
    wizard.py       the way through the steps
"""
