//! What objects mean: read, default, validate; quantities, selectors, names.
