"""The demonstration: a real gateway, a real history, and the proof that its packs go on time.

report.py          what is said, and what was true
process.py         the gateway as a process of its own, to be killed and started again
store.py           where the blobs are, looked at past the gateway: the disk, or a bucket
rados_gateway.py   a real S3 server for that bucket; the tests start it, too
watch.py           when a blob was last seen, and when it was gone
sources.py         the Git history it shows, and Git's own account of its files
story.py           what happens, in order
"""
