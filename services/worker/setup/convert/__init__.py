"""Turns published model packages into the model repository that the worker reads.

One module per source format; `__main__` puts the repository together. Nothing is converted at serving time.
"""
