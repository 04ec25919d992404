"""The state both planes share: addresses, selectors, algorithms, security associations.

Imports nothing else of ours; `policy`, `offload` and `ikd` speak in its terms.
"""
