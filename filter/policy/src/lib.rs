//! filter/policy
