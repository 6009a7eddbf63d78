"""The commands of `cmt`, one file each (those that only look into a bank share one).

Whatever is slow to import (torch, transformers) is imported inside a command.
"""
