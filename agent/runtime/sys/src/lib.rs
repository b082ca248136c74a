//! Every unsafe line of the runtime: syscalls behind safe functions that own their descriptors.
