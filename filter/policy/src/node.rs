//! JSON values that borrow their texts: what documents are read from, one after another.
//!
//! A [`Value`] owns every key and every text. For ten thousand hosts that is a million small allocations, each
//! short-lived. In a VM they are most of what loading costs.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub enum Node<'n> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string; borrowed where it is written without escapes.
    Text(Cow<'n, str>),
    /// A list.
    List(Vec<Node<'n>>),
    /// An object.
    Object(Object<'n>),
}

impl<'n> Node<'n> {
    /// Returns a field of an object, to change it.
    pub fn field_mut(&mut self, key: &str) -> Option<&mut Node<'n>> {
        match self {
            Node::Object(fields) => fields.get_mut(key),
            _ => None,
        }
    }
}

/// The fields of an object, by their keys; of two with one key the later counts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Object<'n>(Vec<(Cow<'n, str>, Node<'n>)>);

impl<'n> Object<'n> {
    /// Returns a field's value.
    pub fn get(&self, key: &str) -> Option<&Node<'n>> {
        let found = self.0.iter().find(|(other, _)| other == key);
        found.map(|(_, value)| value)
    }

    /// Returns a field's value, to change it.
    fn get_mut(&mut self, key: &str) -> Option<&mut Node<'n>> {
        let found = self.0.iter_mut().find(|(other, _)| other == key);
        found.map(|(_, value)| value)
    }

    /// Puts a field in its place.
    pub fn insert(&mut self, key: Cow<'n, str>, value: Node<'n>) {
        // Most are written in order.
        if self.0.last().is_none_or(|(last, _)| *last < key) {
            self.0.push((key, value));
            return;
        }
        match self.0.binary_search_by(|(other, _)| other.cmp(&key)) {
            Ok(at) => {
                if let Some((_, had)) = self.0.get_mut(at) {
                    *had = value;
                }
            }
            Err(at) => self.0.insert(at, (key, value)),
        }
    }

    /// Returns all fields in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node<'n>)> {
        self.0.iter().map(|(key, value)| (&**key, value))
    }
}

/// Borrows every text of a value.
impl<'n> From<&'n Value> for Node<'n> {
    fn from(value: &'n Value) -> Self {
        match value {
            Value::Null => Node::Null,
            Value::Bool(word) => Node::Bool(*word),
            Value::Number(number) => Node::Number(number.clone()),
            Value::String(text) => Node::Text(Cow::Borrowed(text)),
            Value::Array(items) => Node::List(items.iter().map(Node::from).collect()),
            Value::Object(fields) => {
                let mut object = Object(Vec::with_capacity(fields.len()));
                for (key, value) in fields {
                    object.insert(Cow::Borrowed(key), Node::from(value));
                }
                Node::Object(object)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyNode)
    }
}

struct AnyNode;

impl<'de> Visitor<'de> for AnyNode {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any valid JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node<'de>, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, word: bool) -> Result<Node<'de>, E> {
        Ok(Node::Bool(word))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Node<'de>, E> {
        Ok(Node::Number(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Node<'de>, E> {
        Ok(Node::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Node<'de>, E> {
        // JSON has no number that is none.
        Ok(Number::from_f64(number).map_or(Node::Null, Node::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Borrowed(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node<'de>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node<'de>, A::Error> {
        let mut object = Object::default();
        while let Some(Key(key)) = map.next_key()? {
            object.insert(key, map.next_value()?);
        }
        Ok(Node::Object(object))
    }
}

/// A key, which `Cow` by itself would not borrow.
pub struct Key<'k>(pub Cow<'k, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyKey;

        impl<'de> Visitor<'de> for AnyKey {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }
        }

        deserializer.deserialize_str(AnyKey)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn text_and_value_make_the_same_node() {
        let value =
            json!({"b": [1, -2, 0.5, true, null, "x"], "a": {"quo\"ted": "\u{e9}"}, "": ""});
        let text = value.to_string();
        assert_eq!(
            serde_json::from_str::<Node<'_>>(&text).unwrap(),
            Node::from(&value)
        );
    }

    #[test]
    fn the_later_of_two_keys_counts_and_all_come_in_order() {
        let Ok(Node::Object(object)) = serde_json::from_str(r#"{"c":1,"a":2,"b":3,"a":4}"#) else {
            panic!("it is an object");
        };
        let found: Vec<String> = object
            .iter()
            .map(|(key, value)| format!("{key} {value:?}"))
            .collect();
        assert_eq!(
            found,
            [
                "a Number(Number(4))",
                "b Number(Number(3))",
                "c Number(Number(1))"
            ]
        );
    }

    #[test]
    fn what_needs_no_unescaping_is_borrowed() {
        let text = r#"{"plain": "text", "esc\u0061ped": "te\nxt"}"#;
        let Ok(Node::Object(Object(fields))) = serde_json::from_str(text) else {
            panic!("it is an object");
        };
        for (key, value) in &fields {
            let plain = key == "plain";
            assert_eq!(matches!(key, Cow::Borrowed(_)), plain, "{key}");
            assert_eq!(
                matches!(value, Node::Text(Cow::Borrowed(_))),
                plain,
                "{key}"
            );
        }
    }
}
