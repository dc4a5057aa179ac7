"""One page about one or more runs, made of the files in their folders; it needs no network and no torch."""
