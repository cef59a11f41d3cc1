//! The configuration's word for each variant of an enum.

/// Gives an enum its words: `NAMES`, `parse` and `as_str`. One macro, so that the three agree.
///
/// Attributes before the name of the enum go to `NAMES`.
#[macro_export]
macro_rules! words {
    ($(#[$attribute:meta])* $kind:ident { $($variant:ident $word:literal,)* }) => {
        impl $kind {
            $(#[$attribute])*
            pub const NAMES: [&'static str; [$($word),*].len()] = [$($word),*];

            /// Reads the word.
            pub fn parse(word: &str) -> Option<Self> {
                match word {
                    $($word => Some($kind::$variant),)*
                    _ => None,
                }
            }

            /// Returns the word.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($kind::$variant => $word,)*
                }
            }
        }
    };
}
