"""The study: which optimizer at which rate, and which claims of papers hold here.

A claim is a file in `claims/`: what is said and where, the runs that test it, the rule
that decides. The runs are lines of one table, whichever claims use them, and all else
is made of that table.
"""
