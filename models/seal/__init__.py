"""The release gate: a candidate is opened, scored, recorded, sealed; or a fold of one."""
