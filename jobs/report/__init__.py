"""The page of `evaluate --report`: scores, their reasons, and the images behind them."""
