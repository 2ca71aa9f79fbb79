"""Callbacks for trainers: `modbalance.integrations.lightning` and `modbalance.integrations.transformers`.

Neither trainer is needed to import modbalance; each module imports its own.
"""
