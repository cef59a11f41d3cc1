//! filter/core
