"""Who has slots of the adapter: placement, ports, and the virtual machines behind them."""
