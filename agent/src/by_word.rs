//! The closed enums of the logic in JSON: by the word that labels and filters use, too.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

/// One of them.
pub(crate) fn one<T: AsRef<str>, S: Serializer>(
    word: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(word.as_ref())
}

/// One of them, if it is known.
#[expect(clippy::ref_option, reason = "as serde calls it")]
pub(crate) fn any<T: AsRef<str>, S: Serializer>(
    word: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    word.as_ref().map(T::as_ref).serialize(serializer)
}

/// The keys of a map, in the order of the alphabet.
pub(crate) fn keys<T: AsRef<str>, V: Serialize, S: Serializer>(
    map: &BTreeMap<T, V>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let by_word: BTreeMap<_, _> = map.iter().map(|(word, value)| (word.as_ref(), value)).collect();
    by_word.serialize(serializer)
}
