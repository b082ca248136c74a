//! The replicated state: commands, apply, plans, scheduling; pure.
