//! What a request says beside its tensors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, names};

const FINITE: &str = "a finite number";

/// Parameters of any request. All but `cache` are Triton's, whose clients send them also where they mean nothing:
/// <https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_parameters.md>
const COMMON: [&str; 7] = ["cache", "headers", "priority", "sequence_end", "sequence_id", "sequence_start", "timeout"];
/// How names of others that Triton reserves begin.
const COMMON_BEGINNINGS: [&str; 3] = ["triton_", "binary_data", "shared_memory_"];
/// How alike two names must be for one to be taken for the other, from 0 to 1.
const ALIKE: f64 = 0.6;

/// A parameter of a request or an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Parameter {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    String(String),
}

/// The parameter of a reply that lists the rows that were cut, as JSON: `[{"row":0,…}]`.
pub const TRUNCATED: &str = "truncated";

/// In a note of the parameter `truncated`, the share of an image that came: a file that ended too early, while a text's note
/// tells tokens. Nothing that carries it is cached.
pub const CAME: &str = "came";

/// Parameters by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Parameters(pub BTreeMap<String, Parameter>);

impl Parameters {
    /// The parameter as a finite number; whole numbers and floats are both taken, as clients send either.
    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        #[allow(clippy::cast_precision_loss)]
        Ok(Some(match self.0.get(name) {
            None => return Ok(None),
            Some(Parameter::Float(value)) if value.is_finite() => *value,
            Some(Parameter::Int(value)) => *value as f64,
            Some(Parameter::Uint(value)) => *value as f64,
            Some(other) => return Err(mistyped(name, other, FINITE)),
        }))
    }

    /// The parameter as a whole number, 0 or more.
    pub fn count(&self, name: &str) -> Result<Option<u64>> {
        Ok(Some(match self.0.get(name) {
            None => return Ok(None),
            Some(Parameter::Uint(value)) => *value,
            Some(Parameter::Int(value)) => u64::try_from(*value)
                .map_err(|_| mistyped(name, &Parameter::Int(*value), "a whole number, 0 or more"))?,
            Some(other) => return Err(mistyped(name, other, "a whole number, 0 or more")),
        }))
    }

    /// The parameter as a truth value.
    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Parameter::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(mistyped(name, other, "true or false")),
        }
    }

    /// The parameter as text.
    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Parameter::String(value)) => Ok(Some(value)),
            Some(other) => Err(mistyped(name, other, "a string")),
        }
    }

    /// All numbers are finite, also those that nobody reads: parameters are kept, and JSON holds no others.
    ///
    /// # Errors
    /// `InvalidArgument` with the parameter.
    pub fn check_finite(&self) -> Result<()> {
        for (name, parameter) in &self.0 {
            if matches!(parameter, Parameter::Float(value) if !value.is_finite()) {
                return Err(mistyped(name, parameter, FINITE));
            }
        }
        Ok(())
    }

    /// All names are among `known`, or among those that any request may have: a name that is misspelt would be ignored,
    /// and its value be missed by nobody but the caller.
    ///
    /// # Errors
    /// `InvalidArgument` with the name, and the one that was meant or all that are known.
    pub fn check_names(&self, known: &[&str]) -> Result<()> {
        let stranger = self.0.keys().find(|name| !known.contains(&name.as_str()) && !is_common(name));
        let Some(name) = stranger else { return Ok(()) };
        let alike = |known: &&str| strsim::normalized_damerau_levenshtein(name, known);
        let nearest =
            known.iter().max_by(|a, b| alike(a).total_cmp(&alike(b))).filter(|nearest| alike(nearest) >= ALIKE);
        let expected = match nearest {
            Some(nearest) => format!("unknown, did you mean {nearest}?"),
            None if known.is_empty() => "unknown, expected none".to_owned(),
            None => format!("unknown, expected one of {}", names(known)),
        };
        Err(Error::invalid(format!("parameters.{name}"), expected))
    }

    /// Sets a parameter.
    pub fn set(&mut self, name: &str, value: Parameter) {
        self.0.insert(name.to_owned(), value);
    }
}

/// Whether any request may have it: what the protocol and Triton's clients reserve, and what the door itself reads.
fn is_common(name: &str) -> bool {
    COMMON.contains(&name) || COMMON_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

fn mistyped(name: &str, got: &Parameter, expected: &str) -> Error {
    Error::invalid(format!("parameters.{name}"), format!("{got:?}, expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, value: Parameter) -> Parameters {
        Parameters(BTreeMap::from([(name.to_owned(), value)]))
    }

    #[test]
    fn numbers_are_finite() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let parameters = with("temperature", Parameter::Float(value));
            for error in [parameters.number("temperature").unwrap_err(), parameters.check_finite().unwrap_err()] {
                assert!(error.to_string().contains("parameters.temperature: Float("), "{error}");
            }
        }
        let parameters = with("temperature", Parameter::Float(1e-200));
        assert_eq!(parameters.number("temperature").unwrap(), Some(1e-200));
        parameters.check_finite().unwrap();
    }

    #[test]
    fn a_misspelt_name_is_told_the_right_one() {
        let known = ["max_tokens", "temperature", "top_p"];
        let error = |name: &str| with(name, Parameter::Int(1)).check_names(&known).unwrap_err().to_string();
        assert_eq!(error("temprature"), "parameters.temprature: unknown, did you mean temperature?");
        assert_eq!(error("top-p"), "parameters.top-p: unknown, did you mean top_p?");
        assert!(error("x").ends_with("unknown, expected one of max_tokens, temperature, top_p"));
        assert!(with("x", Parameter::Int(1)).check_names(&[]).unwrap_err().to_string().ends_with("expected none"));
        for name in
            ["temperature", "sequence_id", "priority", "triton_enable_empty_final_response", "binary_data_output"]
        {
            with(name, Parameter::Int(1)).check_names(&known).unwrap();
        }
    }
}
