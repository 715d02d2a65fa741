"""The study folder: files, commits, the lease, and the tables read from run folders."""
