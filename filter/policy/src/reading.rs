//! What readers of kinds share, for those that are in other crates: the filter needs no more of these than what decides.

pub use crate::resource::{
    is_label, read_connection_pool, read_export_to, read_labels, read_meta, text_of,
};
