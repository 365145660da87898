"""Blobs: large buffers that lie in shared memory once, and that every reader maps.

`references` names them, `directory` knows their files, `budget` says where there is room, `writing` and `reading` are the two
ends, `freezing` makes of a value a small pickle that refers to blobs. The supervisor counts references and uses none of the
modules that pickle.
"""
