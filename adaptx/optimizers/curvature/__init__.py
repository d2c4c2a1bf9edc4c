"""Methods that use the Hessian's diagonal, one file a paper."""
