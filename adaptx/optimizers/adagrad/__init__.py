"""AdaGrad and its line: sums and averages of squared gradients."""
