"""What is measured and shown of a model beside its training loss: one file an evaluation, by the seam of `seam`."""
