"""Layer normalisation of tokens, with the residual and the bias before it, without weight and bias of its own."""
