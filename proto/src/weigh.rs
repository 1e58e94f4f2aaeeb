//! What a message takes in memory, told from its bytes on the wire and the descriptors.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};

use crate::FILE_DESCRIPTOR_SET;

/// A nested message: its vectors, maps and strings while they are empty.
pub(crate) const MESSAGE: usize = 256;
/// A string or a slice of the receive buffer, while it is empty.
const ELEMENT: usize = 32;
/// A number in a vector of its own or in a field.
const NUMBER: usize = 8;
/// Messages within messages at most; prost reads no deeper.
const DEPTH: usize = 100;

/// It takes more than it may, or is no message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooHeavy;

/// What is to be known of a field.
#[derive(Clone, Copy)]
enum Kind {
    /// A message, by its place in the schema.
    Message(usize),
    /// String or bytes.
    Element,
    /// Numbers of so many bytes, written in a varying number of bytes and often many in one field.
    Varints(usize),
    /// The same, but written as they are.
    Fixed,
}

/// Fields by number, of all messages of the contracts.
struct Schema {
    by_name: HashMap<String, usize>,
    messages: Vec<HashMap<u32, Kind>>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(Schema::read);

impl Schema {
    fn read() -> Self {
        // compiled in: a set that could not be read would fail every test
        let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap_or_default().file;
        let mut all = Vec::new();
        for file in &files {
            collect(file.package(), &file.message_type, &mut all);
        }
        let by_name: HashMap<String, usize> =
            all.iter().enumerate().map(|(place, (name, _))| (name.clone(), place)).collect();
        let messages = all.iter().map(|(_, message)| fields(message, &by_name)).collect();
        Self { by_name, messages }
    }
}

fn collect<'a>(scope: &str, messages: &'a [DescriptorProto], into: &mut Vec<(String, &'a DescriptorProto)>) {
    for message in messages {
        let name = format!("{scope}.{}", message.name());
        collect(&name, &message.nested_type, into);
        into.push((name, message));
    }
}

fn fields(message: &DescriptorProto, by_name: &HashMap<String, usize>) -> HashMap<u32, Kind> {
    let kind = |field: &prost_types::FieldDescriptorProto| match field.r#type() {
        Type::Message | Type::Group => {
            by_name.get(field.type_name().trim_start_matches('.')).map(|&m| Kind::Message(m))
        }
        Type::String | Type::Bytes => Some(Kind::Element),
        Type::Fixed32 | Type::Fixed64 | Type::Sfixed32 | Type::Sfixed64 | Type::Float | Type::Double => {
            Some(Kind::Fixed)
        }
        Type::Bool if field.label() == Label::Repeated => Some(Kind::Varints(1)),
        Type::Int32 | Type::Uint32 | Type::Sint32 | Type::Enum => Some(Kind::Varints(4)),
        _ => Some(Kind::Varints(NUMBER)),
    };
    let known = message.field.iter().filter_map(|field| Some((u32::try_from(field.number()).ok()?, kind(field)?)));
    known.collect()
}

/// Weighs the message that is called `name`; an error if it weighs more than `limit`. What cannot be read weighs as much
/// as was read of it.
pub(crate) fn weigh(name: &str, wire: &[u8], limit: usize) -> Result<usize, TooHeavy> {
    let Some(&place) = SCHEMA.by_name.get(name) else { return Ok(0) };
    let mut left = limit;
    message(place, wire, &mut left, 0)?;
    Ok(limit - left)
}

fn take(left: &mut usize, bytes: usize) -> Result<(), TooHeavy> {
    *left = left.checked_sub(bytes).ok_or(TooHeavy)?;
    Ok(())
}

fn message(place: usize, mut wire: &[u8], left: &mut usize, depth: usize) -> Result<(), TooHeavy> {
    take(left, MESSAGE)?;
    if depth > DEPTH {
        return Ok(());
    }
    let fields = &SCHEMA.messages[place];
    while !wire.is_empty() {
        let Ok((number, wire_type)) = decode_key(&mut wire) else { return Ok(()) };
        let (mut skipped, mut content) = (0, None);
        match wire_type {
            WireType::Varint => {
                if decode_varint(&mut wire).is_err() {
                    return Ok(());
                }
            }
            WireType::SixtyFourBit => skipped = 8,
            WireType::ThirtyTwoBit => skipped = 4,
            WireType::LengthDelimited => {
                let Ok(length) = decode_varint(&mut wire) else { return Ok(()) };
                let Some((inner, rest)) = usize::try_from(length).ok().and_then(|length| wire.split_at_checked(length))
                else {
                    return Ok(());
                };
                (content, wire) = (Some(inner), rest);
            }
            // nothing of ours has groups, and prost skips them
            WireType::StartGroup | WireType::EndGroup => {}
        }
        let Some(rest) = wire.get(skipped..) else { return Ok(()) };
        wire = rest;
        match (fields.get(&number), content) {
            (Some(Kind::Message(inner)), Some(content)) => message(*inner, content, left, depth + 1)?,
            (Some(Kind::Element), Some(content)) => take(left, ELEMENT + content.len())?,
            (Some(Kind::Varints(each)), Some(content)) => {
                // each number ends with a byte below 128
                take(left, each * content.iter().filter(|&&byte| byte < 128).count())?;
            }
            (Some(Kind::Fixed), Some(content)) => take(left, content.len())?,
            (Some(_), None) => take(left, NUMBER)?,
            // unknown fields are skipped
            (None, _) => {}
        }
    }
    Ok(())
}
