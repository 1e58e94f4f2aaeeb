//! Stacks rows into one tensor per input, and cuts outputs into rows again.

use bytes::{Bytes, BytesMut};

use crate::tensor::{Error, Tensor};

/// Concatenates along axis 0. Where axis 1 differs, shorter rows are padded with zeros at its end.
pub fn stack(rows: &[&Tensor]) -> Result<Tensor, Error> {
    let [first, rest @ ..] = rows else { return Err(Error::BadShape(Vec::new())) };
    if rest.is_empty() {
        return Ok((*first).clone());
    }
    let mut shape = first.shape().to_vec();
    let mut count = 0i64;
    for row in rows {
        let same_rank = row.shape().len() == shape.len() && !shape.is_empty();
        if !same_rank || row.dtype() != first.dtype() || row.shape().get(2..) != first.shape().get(2..) {
            return Err(Error::BadShape(row.shape().to_vec()));
        }
        count += row.shape()[0];
        if shape.len() > 1 {
            shape[1] = shape[1].max(row.shape()[1]);
        }
    }
    shape[0] = count;
    let padded: i64 = shape[1..].iter().product();
    let element = first.dtype().size().ok_or_else(|| Error::BadShape(shape.clone()))?;
    let stride = usize::try_from(padded).map_err(|_| Error::BadShape(shape.clone()))? * element;
    let mut data = BytesMut::with_capacity(stride * usize::try_from(count).unwrap_or(0));
    for tensor in rows {
        let rows = tensor.rows();
        let size = tensor.data().len().checked_div(rows).unwrap_or(0);
        if size == stride {
            data.extend_from_slice(tensor.data());
            continue;
        }
        if size == 0 {
            data.resize(data.len() + rows * stride, 0); // rows of nothing are padding alone
            continue;
        }
        for row in tensor.data().chunks_exact(size) {
            data.extend_from_slice(row);
            data.resize(data.len() + stride - size, 0);
        }
    }
    Tensor::new(first.dtype(), shape, data.freeze())
}

/// Cuts the outputs of a batch into those of its entries, which have `rows` rows each.
pub fn split(outputs: &[Tensor], rows: &[usize]) -> Result<Vec<Vec<Tensor>>, Error> {
    let mut start = 0;
    rows.iter()
        .map(|&count| {
            let cut = outputs.iter().map(|tensor| tensor.slice_rows(start, count)).collect();
            start += count;
            cut
        })
        .collect()
}

/// Detaches a small slice from the big buffer it shares, so that keeping it does not keep the buffer.
pub fn detach(data: &Bytes) -> Bytes {
    Bytes::copy_from_slice(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shorter_rows_are_padded_and_rows_come_back() {
        let a = Tensor::from_i64(vec![1, 3], &[1, 2, 3]).unwrap();
        let b = Tensor::from_i64(vec![2, 1], &[4, 5]).unwrap();
        let both = stack(&[&a, &b]).unwrap();
        assert_eq!(both.shape(), [3, 3]);
        assert_eq!(both.to_i64().unwrap(), [1, 2, 3, 4, 0, 0, 5, 0, 0]);
        let rows = split(&[both], &[1, 2]).unwrap();
        assert_eq!(rows[0][0].to_i64().unwrap(), [1, 2, 3]);
        assert_eq!(rows[1][0].shape(), [2, 3]);
    }

    #[test]
    fn rows_of_nothing_are_padded_too() {
        let nothing = Tensor::from_i64(vec![2, 0], &[]).unwrap();
        let some = Tensor::from_i64(vec![1, 2], &[1, 2]).unwrap();
        assert_eq!(stack(&[&nothing, &some]).unwrap().to_i64().unwrap(), [0, 0, 0, 0, 1, 2]);
        assert_eq!(stack(&[&some, &nothing]).unwrap().to_i64().unwrap(), [1, 2, 0, 0, 0, 0]);
        assert_eq!(stack(&[&nothing, &nothing]).unwrap().shape(), [4, 0]);
    }

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        let a = Tensor::from_f32(vec![1, 2, 2], &[0.; 4]).unwrap();
        let b = Tensor::from_f32(vec![1, 2, 3], &[0.; 6]).unwrap();
        let c = Tensor::from_i64(vec![1, 2, 2], &[0; 4]).unwrap();
        assert!(stack(&[&a, &b]).is_err());
        assert!(stack(&[&a, &c]).is_err());
        assert!(stack(&[]).is_err());
    }
}
