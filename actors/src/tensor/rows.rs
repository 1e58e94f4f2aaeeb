//! A tensor as its rows, and back.

use bytes::{Bytes, BytesMut};

use super::{DataType, ElementLengths, Error, Tensor, element_count};

impl Tensor {
    /// The raw bytes of each row, sharing the tensor's memory. A row costs memory even if it has no elements: how many
    /// there may be is judged before.
    ///
    /// # Errors
    /// If it is a scalar, which has no rows.
    pub fn split_rows(&self) -> Result<Vec<Bytes>, Error> {
        let Some((_, tail)) = self.shape.split_first() else { return Err(Error::BadShape(Vec::new())) };
        let rows = self.rows();
        if self.dtype != DataType::Bytes {
            let stride = self.data.len().checked_div(rows).unwrap_or(0);
            return Ok((0..rows).map(|row| self.data.slice(row * stride..(row + 1) * stride)).collect());
        }
        let each = element_count(tail)?;
        let mut at = 0;
        // each element lies behind its length of four bytes
        let lengths: Vec<usize> =
            ElementLengths::new(&self.data).map(|length| Ok(4 + length?)).collect::<Result<_, Error>>()?;
        let split = (0..rows).map(|row| {
            let length: usize = lengths[row * each..(row + 1) * each].iter().sum();
            let cut = self.data.slice(at..at + length);
            at += length;
            cut
        });
        Ok(split.collect())
    }

    /// A tensor of such rows; `tail` is the shape of one.
    ///
    /// # Errors
    /// If the rows are not of this datatype and shape.
    pub fn join_rows(dtype: DataType, tail: &[i64], rows: &[Bytes]) -> Result<Self, Error> {
        let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        let shape: Vec<i64> = [count].into_iter().chain(tail.iter().copied()).collect();
        if let [only] = rows {
            return Self::new(dtype, shape, only.clone());
        }
        let mut data = BytesMut::with_capacity(rows.iter().map(Bytes::len).sum());
        for row in rows {
            data.extend_from_slice(row);
        }
        Self::new(dtype, shape, data.freeze())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_of_bytes_come_back(words in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..12)) {
            let flat = Tensor::from_elements(&words);
            let rows = flat.split_rows().unwrap();
            prop_assert_eq!(rows.len(), words.len());
            prop_assert_eq!(Tensor::join_rows(DataType::Bytes, &[], &rows).unwrap(), flat.clone());
            if words.len() % 2 == 0 {
                let paired = Tensor::new(DataType::Bytes, vec![i64::try_from(words.len() / 2).unwrap(), 2], flat.into_data()).unwrap();
                let rows = paired.split_rows().unwrap();
                prop_assert_eq!(Tensor::join_rows(DataType::Bytes, &[2], &rows).unwrap(), paired);
            }
        }

        #[test]
        fn rows_of_numbers_come_back(rows in 0i64..5, width in 0i64..5) {
            let values: Vec<f32> = (0..rows * width).map(|value| value as f32).collect();
            let whole = Tensor::from_f32(vec![rows, width], &values).unwrap();
            let split = whole.split_rows().unwrap();
            prop_assert_eq!(Tensor::join_rows(DataType::Fp32, &[width], &split).unwrap(), whole);
        }
    }

    #[test]
    fn rows_of_another_shape_are_refused() {
        let rows = Tensor::from_f32(vec![2, 3], &[0.0; 6]).unwrap().split_rows().unwrap();
        assert!(Tensor::join_rows(DataType::Fp32, &[4], &rows).is_err());
        assert!(Tensor::new(DataType::Fp32, Vec::new(), rows[0].slice(0..4)).unwrap().split_rows().is_err());
    }
}
