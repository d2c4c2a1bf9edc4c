"""One file, one paper (or one inseparable pair); the folders are families."""
