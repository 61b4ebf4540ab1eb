"""From a plan to one mask: segment shards, keep the ledger, join the parts."""
