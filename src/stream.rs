//! The seam between all parts: a schema and fallible record batches.
//!
//! Data crosses modules only in this form. Dropping the stream ends whatever makes it. It knows nothing of where the
//! batches come from or go to.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use arrow_array::{RecordBatch, RecordBatchOptions, make_array};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow_data::ArrayData;
use arrow_schema::SchemaRef;
use futures::{Stream, StreamExt, stream::BoxStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::error::{Error, Result};

/// Record batches of one schema. The stream ends with `None`, or with one error after which it is not polled again.
pub struct RecordBatchStream {
    schema: SchemaRef,
    batches: BoxStream<'static, Result<RecordBatch>>,
}

impl RecordBatchStream {
    pub fn new(schema: SchemaRef, batches: impl Stream<Item = Result<RecordBatch>> + Send + 'static) -> Self {
        Self { schema, batches: batches.boxed() }
    }

    /// Batches that are in memory already.
    pub fn from_batches(schema: SchemaRef, batches: Vec<RecordBatch>) -> Self {
        Self::new(schema, futures::stream::iter(batches.into_iter().map(Ok)))
    }

    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Calls `look` with each batch as it passes.
    pub fn inspect(self, mut look: impl FnMut(&RecordBatch) + Send + 'static) -> Self {
        let Self { schema, batches } = self;
        Self::new(schema, batches.inspect(move |item| item.iter().for_each(&mut look)))
    }

    /// Calls `end` once, when the stream has ended: well or in an error. A stream that is dropped before says nothing.
    pub fn ending(self, end: impl FnOnce(Result<()>) + Send + 'static) -> Self {
        let Self { schema, mut batches } = self;
        let mut end = Some(end);
        let watched = futures::stream::poll_fn(move |cx| {
            let item = ready!(batches.as_mut().poll_next(cx));
            let outcome = match &item {
                Some(Ok(_)) => None,
                Some(Err(error)) => Some(Err(error.clone())),
                None => Some(Ok(())),
            };
            if let Some((end, outcome)) = outcome.and_then(|outcome| Some((end.take()?, outcome))) {
                end(outcome);
            }
            Poll::Ready(item)
        });
        Self::new(schema, watched)
    }

    /// The same stream, and what of it is left over where its reader drops it before its end.
    pub fn lent(self) -> (Self, oneshot::Receiver<Self>) {
        let (sender, left) = oneshot::channel();
        let schema = self.schema();
        let lent = Lent { stream: Some(self), giving_back: Some(sender) };
        (Self::new(schema, lent), left)
    }

    /// Keeps `guard` alive as long as the stream is.
    pub fn holding(self, guard: impl Send + 'static) -> Self {
        let Self { schema, batches } = self;
        Self::new(
            schema,
            batches.map(move |item| {
                let _ = &guard;
                item
            }),
        )
    }
}

impl Stream for RecordBatchStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.batches.as_mut().poll_next(cx)
    }
}

/// The sending end of [`channel`].
#[derive(Clone)]
pub struct BatchSender {
    batches: mpsc::Sender<(Result<RecordBatch>, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    units: u32,
}

/// A channel of so many batches, and of so many bytes at most. A batch that is larger than that passes alone.
pub fn channel(
    batches: usize,
    bytes: u64,
) -> (BatchSender, impl Stream<Item = Result<RecordBatch>> + Send + Unpin + 'static) {
    // A unit is a KiB.
    let units = u32::try_from(bytes / 1024).unwrap_or(u32::MAX >> 4).max(1);
    let room = Arc::new(Semaphore::new(units as usize));
    let (sender, mut receiver) = mpsc::channel(batches);
    let taken = futures::stream::poll_fn(move |cx| {
        let item = ready!(receiver.poll_recv(cx));
        Poll::Ready(item.map(|(batch, _room)| batch))
    });
    (BatchSender { batches: sender, room, units }, taken)
}

impl BatchSender {
    /// Waits for room. False where nobody reads any more.
    pub async fn send(&self, item: Result<RecordBatch>) -> bool {
        let bytes = item.as_ref().map_or(0, batch_bytes);
        let units = u32::try_from(bytes / 1024 + 1).unwrap_or(self.units).min(self.units);
        let sending = async {
            let Ok(room) = self.room.clone().acquire_many_owned(units).await else { return false };
            self.batches.send((item, room)).await.is_ok()
        };
        // Who waits for room hears of a reader that has gone, too.
        tokio::select! {
            sent = sending => sent,
            () = self.batches.closed() => false,
        }
    }
}

/// Gives its stream back when it is dropped before the end.
struct Lent {
    /// `None` once it has ended.
    stream: Option<RecordBatchStream>,
    giving_back: Option<oneshot::Sender<RecordBatchStream>>,
}

impl Stream for Lent {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        let item = ready!(stream.poll_next_unpin(cx));
        if !matches!(item, Some(Ok(_))) {
            self.stream = None;
        }
        Poll::Ready(item)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(stream), Some(giving_back)) = (self.stream.take(), self.giving_back.take()) {
            // Whoever lent it may be gone.
            let _ = giving_back.send(stream);
        }
    }
}

/// A copy that shares no bytes with the batch, nor keeps what those are a part of; and how many bytes it has.
pub fn own_copy(batch: &RecordBatch) -> Result<(RecordBatch, u64)> {
    let mut bytes = 0;
    let columns = batch.columns().iter().map(|column| make_array(copied(&column.to_data(), &mut bytes))).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let copy = RecordBatch::try_new_with_options(batch.schema(), columns, &options).map_err(Error::internal)?;
    Ok((copy, bytes))
}

fn copied(data: &ArrayData, bytes: &mut u64) -> ArrayData {
    let mut copy = |buffer: &Buffer| {
        *bytes += buffer.len() as u64;
        Buffer::from_slice_ref(buffer.as_slice())
    };
    let buffers = data.buffers().iter().map(&mut copy).collect();
    let nulls = data.nulls().map(|nulls| {
        let bits = nulls.inner();
        NullBuffer::new(BooleanBuffer::new(copy(bits.inner()), bits.offset(), bits.len()))
    });
    let children = data.child_data().iter().map(|child| copied(child, bytes)).collect();
    let builder = data.clone().into_builder().buffers(buffers).nulls(nulls).child_data(children);
    // SAFETY: each buffer has the bytes of the one in its place, and type, offset and length are the same.
    unsafe { builder.build_unchecked() }
}

/// What the buffers of a batch hold, whether its rows use all of it or not.
pub fn held_bytes(batch: &RecordBatch) -> u64 {
    fn held(data: &ArrayData) -> u64 {
        let own = data.buffers().iter().map(Buffer::len).sum::<usize>() as u64;
        let nulls = data.nulls().map_or(0, |nulls| nulls.buffer().len() as u64);
        own + nulls + data.child_data().iter().map(held).sum::<u64>()
    }
    batch.columns().iter().map(|column| held(&column.to_data())).sum()
}

/// The bytes of a batch as Arrow counts them: the slices of its buffers, without what is only reserved.
pub fn batch_bytes(batch: &RecordBatch) -> u64 {
    batch.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or(0) as u64).sum()
}

#[cfg(test)]
mod tests {
    use arrow_array::StringArray;
    use arrow_schema::{DataType, Field, Schema};
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn channel_is_bounded_in_bytes_and_lets_a_large_batch_pass_alone() {
        let schema = Arc::new(Schema::new(vec![Field::new("s", DataType::Utf8, false)]));
        let of = |bytes: usize| {
            let texts = StringArray::from(vec!["x".repeat(bytes)]);
            Ok(RecordBatch::try_new(schema.clone(), vec![Arc::new(texts)]).expect("it fits"))
        };
        let (sender, mut taken) = channel(8, 1 << 20);
        for _ in 0..2 {
            assert!(sender.send(of(400 << 10)).await);
        }
        let mut third = Box::pin(sender.send(of(400 << 10)));
        assert!(third.as_mut().now_or_never().is_none(), "there is no room for three");
        taken.next().await.expect("it is there").expect("a batch");
        assert!(third.await);
        let mut large = Box::pin(sender.send(of(5 << 20)));
        assert!(large.as_mut().now_or_never().is_none(), "it waits until it is alone");
        for _ in 0..2 {
            taken.next().await.expect("it is there").expect("a batch");
        }
        assert!(large.await);
        let mut behind = Box::pin(sender.send(of(1)));
        assert!(behind.as_mut().now_or_never().is_none(), "it fills the channel");
        drop(taken);
        assert!(!behind.await, "nobody reads any more");
    }
}
