//! Real processes, real containers: harness, scenarios, benches.
