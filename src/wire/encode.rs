//! Record batches -> FlightData: the standard path, and what both paths share.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
};

use arrow_array::{Array, RecordBatch, cast::AsArray};
use arrow_flight::{
    FlightData, FlightDescriptor, IpcMessage, SchemaAsIpc,
    encode::{DictionaryHandling, FlightDataEncoderBuilder},
    error::FlightError,
};
use arrow_ipc::{CompressionType, writer::IpcWriteOptions};
use arrow_schema::{DataType, Schema, UnionMode};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream::BoxStream};

use super::{
    beside::{Beside, apart},
    frame::{Framer, Segments, small_message},
};
use crate::{
    config::{Compression, Size},
    error::{Error, Result},
    stream::RecordBatchStream,
};

/// How a stream is to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Sending {
    /// Batches are split by rows to stay near this size.
    pub message_size: Size,
    /// Of each buffer in a batch.
    pub compression: Compression,
}

impl Sending {
    fn options(self) -> Result<IpcWriteOptions> {
        let codec = match self.compression {
            Compression::None => None,
            Compression::Lz4 => Some(CompressionType::LZ4_FRAME),
            Compression::Zstd => Some(CompressionType::ZSTD),
        };
        IpcWriteOptions::default().try_with_compression(codec).map_err(Error::internal)
    }
}

/// The schema first, then each batch, by arrow-flight's encoder.
pub fn encode(
    stream: RecordBatchStream,
    sending: Sending,
    descriptor: Option<FlightDescriptor>,
) -> BoxStream<'static, Result<FlightData>> {
    let options = match sending.options() {
        Ok(options) => options,
        Err(error) => return futures::stream::iter([Err(error)]).boxed(),
    };
    // What the messages of the batches say beside them, in the order of the batches; the encoder knows none of it.
    let besides = Arc::new(Mutex::new(VecDeque::new()));
    let (kept, schema) = (besides.clone(), stream.schema());
    let batches = in_pieces(stream, sending.message_size).filter_map(move |piece| {
        let kept = |beside| kept.lock().unwrap_or_else(PoisonError::into_inner).push_back(beside);
        std::future::ready(match piece {
            Ok((_, Beside::Alone(said))) => {
                kept(Beside::Alone(said));
                None
            }
            // The encoder makes no message of it.
            Ok((batch, beside)) if batch.num_rows() == 0 => {
                if let Beside::WithRows(said) = beside {
                    kept(Beside::Alone(said));
                }
                None
            }
            Ok((batch, beside)) => {
                kept(beside);
                Some(Ok(batch))
            }
            Err(error) => Some(Err(FlightError::ExternalError(Box::new(error)))),
        })
    });
    let messages = FlightDataEncoderBuilder::new()
        .with_schema(schema)
        .with_options(options)
        // Batches are in pieces already; the encoder would count a shared buffer once for each slice of it.
        .with_max_flight_data_size(usize::MAX)
        // An ENUM leaves as a dictionary.
        .with_dictionary_handling(DictionaryHandling::Resend)
        .with_flight_descriptor(descriptor)
        .build(batches)
        .map(|item| item.map_err(cause));
    saying(messages.boxed(), besides).boxed()
}

/// The messages with what they say beside their batches, and those that say nothing else, in their places.
fn saying(
    mut messages: BoxStream<'static, Result<FlightData>>,
    besides: Arc<Mutex<VecDeque<Beside>>>,
) -> impl Stream<Item = Result<FlightData>> + Send + 'static {
    let mut next: Option<FlightData> = None;
    futures::stream::poll_fn(move |cx| {
        let polled = match next.take() {
            Some(message) => Poll::Ready(Some(Ok(message))),
            None => messages.poll_next_unpin(cx),
        };
        let mut besides = besides.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Beside::Alone(_)) = besides.front()
            && !matches!(polled, Poll::Ready(Some(Err(_))))
        {
            let Some(Beside::Alone(app_metadata)) = besides.pop_front() else { return Poll::Pending };
            if let Poll::Ready(Some(Ok(message))) = polled {
                next = Some(message);
            }
            return Poll::Ready(Some(Ok(FlightData { app_metadata, ..FlightData::default() })));
        }
        polled.map(|item| {
            item.map(|message| {
                let mut message = message?;
                let is_batch = arrow_ipc::root_as_message(&message.data_header)
                    .is_ok_and(|header| header.header_type() == arrow_ipc::MessageHeader::RecordBatch);
                if is_batch && let Some(Beside::WithRows(app_metadata)) = besides.pop_front() {
                    message.app_metadata = app_metadata;
                }
                Ok(message)
            })
        })
    })
}

/// The same messages without copies of columns, as segments of an HTTP/2 body.
pub(super) fn frames(
    stream: RecordBatchStream,
    sending: Sending,
    descriptor: Option<FlightDescriptor>,
) -> BoxStream<'static, Result<Segments>> {
    let begun = sending.options().and_then(|options| Framer::new(&stream.schema(), options, descriptor));
    let (first, framer) = match begun {
        Ok(begun) => begun,
        Err(error) => return futures::stream::iter([Err(error)]).boxed(),
    };
    let batches = in_pieces(stream, sending.message_size);
    let messages = match sending.compression {
        Compression::None => {
            let mut framer = framer;
            batches.map(move |piece| piece.and_then(|piece| framed(&mut framer, piece))).boxed()
        }
        // Milliseconds of work for each message: not on a thread that serves others, too.
        _ => futures::stream::try_unfold((batches.boxed(), framer), async |(mut batches, mut framer)| {
            let Some(batch) = batches.next().await.transpose()? else { return Ok(None) };
            let working =
                tokio::task::spawn_blocking(move || framed(&mut framer, batch).map(|messages| (messages, framer)));
            let (messages, framer) = working.await.map_err(Error::internal)??;
            Ok(Some((messages, (batches, framer))))
        })
        .boxed(),
    };
    let messages = messages.flat_map(|messages| {
        futures::stream::iter(match messages {
            Ok(messages) => messages.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    });
    futures::stream::iter([Ok(first)]).chain(messages).boxed()
}

fn framed(framer: &mut Framer, (batch, beside): (RecordBatch, Beside)) -> Result<Vec<Segments>> {
    match beside {
        Beside::Nothing => framer.frame_with(&batch, &[]),
        Beside::WithRows(said) => framer.frame_with(&batch, &said),
        Beside::Alone(app_metadata) => Ok(vec![small_message(&FlightData { app_metadata, ..FlightData::default() })]),
    }
}

/// Halves batches until each is near the size. One row that is longer than the size stays whole.
fn in_pieces(
    stream: RecordBatchStream,
    size: Size,
) -> impl Stream<Item = Result<(RecordBatch, Beside)>> + Send + 'static {
    fn halve(batch: RecordBatch, beside: Beside, size: u64, pieces: &mut Vec<Result<(RecordBatch, Beside)>>) {
        let rows = batch.num_rows();
        if rows < 2 || batch.columns().iter().map(|column| divisible_bytes(column)).sum::<u64>() <= size {
            return pieces.push(Ok((batch, beside)));
        }
        // At a whole byte of the bitmaps where there are enough rows, so that they need no shifting.
        let half = if rows < 32 { rows / 2 } else { (rows / 2).next_multiple_of(8) };
        // With the first of the rows that it came with.
        halve(batch.slice(0, half), beside, size, pieces);
        halve(batch.slice(half, rows - half), Beside::Nothing, size, pieces);
    }
    let (size, schema) = (size.bytes() as u64, stream.schema());
    stream.flat_map(move |batch| {
        let mut pieces = Vec::with_capacity(1);
        match batch.and_then(|batch| apart(batch, &schema)) {
            Ok((batch, beside)) => halve(batch, beside, size, &mut pieces),
            Err(error) => pieces.push(Err(error)),
        }
        futures::stream::iter(pieces)
    })
}

/// The bytes of a column that get fewer with its rows. A dictionary, and what views point into, goes whole with any part of the
/// rows: splitting for its sake would send it again and again, in the end with every single row.
fn divisible_bytes(column: &dyn Array) -> u64 {
    let rows = column.len() as u64;
    let list = |first: usize, end: usize, width: u64, values: &dyn Array| {
        rows * width + divisible_bytes(&values.slice(first, end - first))
    };
    let bytes = match column.data_type() {
        DataType::List(_) => {
            let (offsets, values) = (column.as_list::<i32>().offsets(), column.as_list::<i32>().values());
            list(offsets[0] as usize, offsets[column.len()] as usize, 4, values)
        }
        DataType::LargeList(_) => {
            let (offsets, values) = (column.as_list::<i64>().offsets(), column.as_list::<i64>().values());
            list(offsets[0] as usize, offsets[column.len()] as usize, 8, values)
        }
        DataType::Map(..) => {
            let (offsets, entries) = (column.as_map().offsets(), column.as_map().entries());
            list(offsets[0] as usize, offsets[column.len()] as usize, 4, entries)
        }
        DataType::FixedSizeList(..) => divisible_bytes(column.as_fixed_size_list().values()),
        DataType::Struct(_) => column.as_struct().columns().iter().map(|child| divisible_bytes(child)).sum(),
        DataType::Union(fields, UnionMode::Sparse) => {
            rows + fields.iter().map(|(id, _)| divisible_bytes(column.as_union().child(id))).sum::<u64>()
        }
        DataType::Union(_, UnionMode::Dense) => 5 * rows,
        DataType::Dictionary(..) => {
            return column.as_any_dictionary().keys().to_data().get_slice_memory_size().unwrap_or(0) as u64;
        }
        DataType::ListView(_) => 8 * rows,
        DataType::LargeListView(_) | DataType::Utf8View | DataType::BinaryView => 16 * rows,
        DataType::RunEndEncoded(..) => 0,
        _ => return column.to_data().get_slice_memory_size().unwrap_or(0) as u64,
    };
    bytes + column.nulls().map_or(0, |_| rows.div_ceil(8))
}

/// The stream's own error again, or what the encoder could not encode.
fn cause(error: FlightError) -> Error {
    match error {
        FlightError::ExternalError(inner) => match inner.downcast::<Error>() {
            Ok(ours) => *ours,
            Err(other) => Error::internal(other),
        },
        other => Error::Unsupported(format!("cannot be sent as Arrow IPC: {other}")),
    }
}

/// A schema as an encapsulated IPC message, the form of FlightInfo and SchemaResult.
pub fn schema_bytes(schema: &Schema) -> Result<Bytes> {
    let options = IpcWriteOptions::default();
    let IpcMessage(bytes) = SchemaAsIpc::new(schema, &options).try_into().map_err(Error::internal)?;
    Ok(bytes)
}
