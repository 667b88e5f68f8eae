"""Train a model on annotated tasks: split, fit, evaluate, gate, write, promote.

fit          all of it: `fit_version`
preparation  what is checked before training
splits       which tasks to train on, and which to hold out
trainer      call a model's `fit`, and evaluate it on the held-out tasks
"""
