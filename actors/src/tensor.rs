//! A tensor as it travels: a datatype, a shape and its little-endian bytes.
//!
//! The layout is the raw form of the [Open Inference Protocol]: row-major, little-endian, and for
//! [`DataType::Bytes`] each element preceded by its length as a `u32`. Bytes are shared, never copied on the way.
//!
//! [Open Inference Protocol]: https://github.com/kserve/open-inference-protocol

mod rows;

use std::fmt;
use std::str::FromStr;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// What a tensor can get wrong about itself.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The datatype's name is none of the protocol's.
    #[error(
        "unknown datatype '{0}', expected one of BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, BF16, FP32, FP64, BYTES"
    )]
    UnknownDataType(String),
    /// A dimension is negative, or their product overflows.
    #[error("shape {0:?} is not a valid shape")]
    BadShape(Vec<i64>),
    /// The number of bytes is not what datatype and shape ask for.
    #[error("{got} bytes given, but {dtype} of shape {shape:?} takes {want}")]
    ByteSize {
        /// The tensor's datatype.
        dtype: DataType,
        /// The tensor's shape.
        shape: Vec<i64>,
        /// Bytes that datatype and shape ask for.
        want: usize,
        /// Bytes that were given.
        got: usize,
    },
    /// A BYTES element's length runs past the end of the data.
    #[error("BYTES element {index} says {length} bytes, but {left} are left")]
    BytesElement {
        /// Position of the element.
        index: usize,
        /// Its declared length.
        length: usize,
        /// Bytes that remain after the length.
        left: usize,
    },
    /// The number of BYTES elements is not what the shape asks for.
    #[error("{got} BYTES elements given, but shape {shape:?} takes {want}")]
    BytesCount {
        /// The tensor's shape.
        shape: Vec<i64>,
        /// Elements that the shape asks for.
        want: usize,
        /// Elements that were given.
        got: usize,
    },
    /// There are more BYTES elements than the shape asks for.
    #[error("more BYTES elements given than the {want} that shape {shape:?} takes")]
    BytesSurplus {
        /// The tensor's shape.
        shape: Vec<i64>,
        /// Elements that the shape asks for.
        want: usize,
    },
    /// The caller asked for another datatype than the tensor has.
    #[error("tensor is {got}, expected {want}")]
    DataType {
        /// What the tensor is.
        got: DataType,
        /// What was asked for.
        want: DataType,
    },
}

/// The datatypes of the Open Inference Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum DataType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

impl DataType {
    /// Bytes of one element; `None` for the variable-length BYTES.
    pub fn size(self) -> Option<usize> {
        Some(match self {
            Self::Bool | Self::Uint8 | Self::Int8 => 1,
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => 2,
            Self::Uint32 | Self::Int32 | Self::Fp32 => 4,
            Self::Uint64 | Self::Int64 | Self::Fp64 => 8,
            Self::Bytes => return None,
        })
    }

    /// The protocol's name, as it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DataType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        const ALL: [DataType; 14] = [
            DataType::Bool,
            DataType::Uint8,
            DataType::Uint16,
            DataType::Uint32,
            DataType::Uint64,
            DataType::Int8,
            DataType::Int16,
            DataType::Int32,
            DataType::Int64,
            DataType::Fp16,
            DataType::Bf16,
            DataType::Fp32,
            DataType::Fp64,
            DataType::Bytes,
        ];
        ALL.into_iter().find(|dtype| dtype.as_str() == name).ok_or_else(|| Error::UnknownDataType(name.to_owned()))
    }
}

/// A value with datatype and shape; cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    dtype: DataType,
    shape: Vec<i64>,
    data: Bytes,
}

impl Tensor {
    /// Checks `data` against datatype and shape.
    pub fn new(dtype: DataType, shape: Vec<i64>, data: Bytes) -> Result<Self, Error> {
        let elements = element_count(&shape)?;
        match dtype.size() {
            Some(size) => {
                let want = elements.checked_mul(size).ok_or_else(|| Error::BadShape(shape.clone()))?;
                if want != data.len() {
                    return Err(Error::ByteSize { dtype, shape, want, got: data.len() });
                }
            }
            None => {
                let mut count = 0;
                for length in ElementLengths::new(&data) {
                    length?;
                    count += 1;
                    // what is too much is not counted to its end: millions of elements fit in few bytes
                    if count > elements {
                        return Err(Error::BytesSurplus { shape, want: elements });
                    }
                }
                if count != elements {
                    return Err(Error::BytesCount { shape, want: elements, got: count });
                }
            }
        }
        Ok(Self { dtype, shape, data })
    }

    /// FP32 values of a shape that holds exactly as many.
    pub fn from_f32(shape: Vec<i64>, values: &[f32]) -> Result<Self, Error> {
        Self::new(DataType::Fp32, shape, little_endian(values.iter().map(|v| v.to_le_bytes())))
    }

    /// INT64 values of a shape that holds exactly as many.
    pub fn from_i64(shape: Vec<i64>, values: &[i64]) -> Result<Self, Error> {
        Self::new(DataType::Int64, shape, little_endian(values.iter().map(|v| v.to_le_bytes())))
    }

    /// A vector of BYTES elements, shape `[elements.len()]`.
    pub fn from_elements<E: AsRef<[u8]>>(elements: &[E]) -> Self {
        let size = elements.iter().map(|e| 4 + e.as_ref().len()).sum();
        let mut data = BytesMut::with_capacity(size);
        for element in elements {
            let element = element.as_ref();
            // an element longer than 4 GiB cannot reach us: every source is bounded by the message limit
            data.put_u32_le(u32::try_from(element.len()).unwrap_or(u32::MAX));
            data.put_slice(element);
        }
        Self {
            dtype: DataType::Bytes,
            shape: vec![i64::try_from(elements.len()).unwrap_or(i64::MAX)],
            data: data.freeze(),
        }
    }

    /// Datatype of every element.
    pub fn dtype(&self) -> DataType {
        self.dtype
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// The raw little-endian bytes.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Takes the raw bytes out.
    pub fn into_data(self) -> Bytes {
        self.data
    }

    /// Rows: the size of the outermost dimension, 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().map_or(1, |&rows| usize::try_from(rows).unwrap_or(0))
    }

    /// The elements of a BYTES tensor, sharing its memory.
    pub fn elements(&self) -> Result<Vec<Bytes>, Error> {
        self.expect(DataType::Bytes)?;
        let mut at = 0;
        let elements = ElementLengths::new(&self.data).map(|length| {
            let start = at + 4;
            at = start + length?;
            Ok(self.data.slice(start..at))
        });
        elements.collect()
    }

    /// The values of an FP32 tensor.
    pub fn to_f32(&self) -> Result<Vec<f32>, Error> {
        self.expect(DataType::Fp32)?;
        Ok(self.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// The values of an INT64 tensor.
    pub fn to_i64(&self) -> Result<Vec<i64>, Error> {
        self.expect(DataType::Int64)?;
        Ok(self
            .data
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
            .collect())
    }

    /// Rows `start..start + count` of a fixed-size tensor, sharing its memory.
    pub fn slice_rows(&self, start: usize, count: usize) -> Result<Self, Error> {
        let rows = self.rows();
        let mut shape = self.shape.clone();
        if self.dtype == DataType::Bytes || shape.is_empty() || start + count > rows {
            return Err(Error::BadShape(shape));
        }
        let stride = self.data.len().checked_div(rows).unwrap_or(0);
        shape[0] = i64::try_from(count).unwrap_or(i64::MAX);
        Ok(Self { dtype: self.dtype, shape, data: self.data.slice(start * stride..(start + count) * stride) })
    }

    fn expect(&self, want: DataType) -> Result<(), Error> {
        if self.dtype == want { Ok(()) } else { Err(Error::DataType { got: self.dtype, want }) }
    }
}

fn little_endian<const N: usize>(values: impl ExactSizeIterator<Item = [u8; N]>) -> Bytes {
    let mut data = BytesMut::with_capacity(values.len() * N);
    for value in values {
        data.put_slice(&value);
    }
    data.freeze()
}

/// Elements of a shape; an error when a dimension is negative or the product overflows.
pub fn element_count(shape: &[i64]) -> Result<usize, Error> {
    shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(usize::try_from(dim).ok()?))
        .ok_or_else(|| Error::BadShape(shape.to_vec()))
}

/// The lengths of BYTES elements, each of which stands before its element as a `u32`.
struct ElementLengths<'a> {
    left: &'a [u8],
    index: usize,
}

impl<'a> ElementLengths<'a> {
    fn new(data: &'a [u8]) -> Self {
        Self { left: data, index: 0 }
    }
}

impl Iterator for ElementLengths<'_> {
    type Item = Result<usize, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let left = std::mem::take(&mut self.left);
        if left.is_empty() {
            return None;
        }
        let index = self.index;
        self.index += 1;
        let Some((head, rest)) = left.split_first_chunk::<4>() else {
            return Some(Err(Error::BytesElement { index, length: 4, left: left.len() }));
        };
        let length = u32::from_le_bytes(*head) as usize;
        let Some(after) = rest.get(length..) else {
            return Some(Err(Error::BytesElement { index, length, left: rest.len() }));
        };
        self.left = after;
        Some(Ok(length))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_elements_survive_a_round_trip() {
        let tensor = Tensor::from_elements(&["a", "", "three"]);
        assert_eq!(tensor.shape(), [3]);
        assert_eq!(tensor.elements().unwrap(), ["a".as_bytes(), b"", b"three"]);
        assert_eq!(Tensor::new(DataType::Bytes, vec![3], tensor.data().clone()).unwrap(), tensor);
    }

    #[test]
    fn sizes_are_checked() {
        let short = Tensor::new(DataType::Fp32, vec![2, 2], Bytes::from_static(&[0; 12]));
        assert_eq!(short.unwrap_err().to_string(), "12 bytes given, but FP32 of shape [2, 2] takes 16");
        assert!(Tensor::new(DataType::Int8, vec![-1], Bytes::new()).is_err());
        assert!(Tensor::new(DataType::Fp64, vec![i64::MAX, 2], Bytes::new()).is_err());
        assert!(Tensor::new(DataType::Bytes, vec![1], Bytes::from_static(&[9, 0, 0, 0, 1])).is_err());
        assert!(Tensor::new(DataType::Bytes, vec![2], Tensor::from_elements(&["one"]).into_data()).is_err());
    }

    proptest! {
        /// Whatever bytes come, a tensor is either refused or consistent, and nothing panics.
        #[test]
        fn arbitrary_bytes_are_refused_or_consistent(
            dtype in 0..14usize,
            shape in prop::collection::vec(prop_oneof![-2..5i64, any::<i64>()], 0..4),
            data in prop::collection::vec(any::<u8>(), 0..96),
            start in 0..6usize,
            count in 0..6usize,
        ) {
            let names = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64", "BYTES"];
            let dtype: DataType = names[dtype].parse().unwrap();
            if let Ok(tensor) = Tensor::new(dtype, shape.clone(), Bytes::from(data)) {
                prop_assert_eq!(tensor.shape(), &shape[..]);
                match dtype {
                    DataType::Bytes => {
                        prop_assert_eq!(tensor.elements().unwrap().len(), element_count(&shape).unwrap());
                    }
                    _ => drop(tensor.elements().unwrap_err()),
                }
                if let Ok(cut) = tensor.slice_rows(start, count) {
                    prop_assert_eq!(cut.rows(), count);
                    prop_assert!(Tensor::new(dtype, cut.shape().to_vec(), cut.data().clone()).is_ok());
                }
            }
        }

        #[test]
        fn elements_survive(elements in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..6)) {
            let tensor = Tensor::from_elements(&elements);
            let again = Tensor::new(DataType::Bytes, tensor.shape().to_vec(), tensor.data().clone()).unwrap();
            prop_assert_eq!(again.elements().unwrap(), elements);
        }
    }

    #[test]
    fn rows_are_cut_without_copying() {
        let tensor = Tensor::from_f32(vec![3, 2], &[0., 1., 2., 3., 4., 5.]).unwrap();
        let cut = tensor.slice_rows(1, 2).unwrap();
        assert_eq!(cut.shape(), [2, 2]);
        assert_eq!(cut.to_f32().unwrap(), [2., 3., 4., 5.]);
        assert!(tensor.slice_rows(2, 2).is_err());
    }
}
