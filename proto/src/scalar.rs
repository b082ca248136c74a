//! Quantity and IntOrString are bare scalars in JSON and YAML (`cpu: 500m`, `maxSurge: 25%`).

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::v1::int_or_string::Value;
use crate::v1::{IntOrString, Quantity};

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor)
    }
}

struct QuantityVisitor;

impl Visitor<'_> for QuantityVisitor {
    type Value = Quantity;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a quantity such as 500m or 1Gi")
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
        Ok(Quantity {
            text: text.to_owned(),
        })
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Quantity, E> {
        Ok(Quantity {
            text: number.to_string(),
        })
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Quantity, E> {
        Ok(Quantity {
            text: number.to_string(),
        })
    }
    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Quantity, E> {
        Ok(Quantity {
            text: number.to_string(),
        })
    }
}

impl Serialize for IntOrString {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.value {
            Some(Value::Number(number)) => serializer.serialize_i32(*number),
            Some(Value::Text(text)) => serializer.serialize_str(text),
            None => serializer.serialize_none(),
        }
    }
}

impl<'de> Deserialize<'de> for IntOrString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IntOrStringVisitor)
    }
}

struct IntOrStringVisitor;

impl Visitor<'_> for IntOrStringVisitor {
    type Value = IntOrString;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a number or a string")
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<IntOrString, E> {
        Ok(IntOrString {
            value: Some(Value::Text(text.to_owned())),
        })
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<IntOrString, E> {
        let number = i32::try_from(number).map_err(|_| E::custom("the number is out of range"))?;
        Ok(IntOrString {
            value: Some(Value::Number(number)),
        })
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<IntOrString, E> {
        let number = i32::try_from(number).map_err(|_| E::custom("the number is out of range"))?;
        Ok(IntOrString {
            value: Some(Value::Number(number)),
        })
    }
}
