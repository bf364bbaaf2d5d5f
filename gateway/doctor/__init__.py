"""What is wrong with this gateway's database, store and log, and what mends it.

`examine` tells one finding after the other; it changes nothing but for one lease of its own, whose
blob it writes, reads by URL and deletes, as a fetch would.
"""
