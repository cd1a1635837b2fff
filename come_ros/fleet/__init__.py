"""Many recordings, one task each, over the machines of a cluster: what is to be done, what is done already, and what failed.

sources.py     which recordings, and what identifies their content
record.py      the ledger of finished work: a file in each folder of results
work.py        the unit of work: one command in a process of its own, whose results appear whole or not at all
executors.py   what runs units of work; ray_executor.py: Ray
loop.py        which unit next, what is tried again, when nothing new is started
predictions.py, segments.py   long recordings: the model's passes of its windows in several processes
"""
