"""What a switch costs beside the instructions made for it, beside its peers, and in memory.

Every figure is a ratio of what ran in turn, on one processor, in one session; never a time alone.
"""
