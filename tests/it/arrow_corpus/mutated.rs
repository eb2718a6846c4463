//! Batches of the corpus with some of their bytes changed: lengths, offsets, counts of nulls, type ids, keys, values.

use std::panic::AssertUnwindSafe;

use arrow_array::RecordBatch;
use arrow_flight::{
    FlightData, FlightDescriptor, decode::FlightRecordBatchStream, encode::FlightDataEncoderBuilder,
    flight_descriptor::DescriptorType,
};
use futures::{FutureExt, TryStreamExt};
use tonic::Code;

use super::{leaves, start, stream, values, wrapped};
use crate::{
    support::{collect, row, run},
    wire::{Random, mutated::spoil},
};

fn messages(batches: Vec<RecordBatch>) -> Vec<FlightData> {
    let descriptor =
        FlightDescriptor { r#type: DescriptorType::Path as i32, path: vec!["m".into()], ..Default::default() };
    let rows = futures::stream::iter(batches.into_iter().map(Ok));
    let handling = arrow_flight::encode::DictionaryHandling::Resend;
    let encoder =
        FlightDataEncoderBuilder::new().with_flight_descriptor(Some(descriptor)).with_dictionary_handling(handling);
    encoder.build(rows).try_collect().now_or_never().expect("the batches are there").unwrap()
}

/// What arrow-rs makes of the messages; nothing where it refuses them or panics.
fn read(messages: Vec<FlightData>) -> Option<Vec<RecordBatch>> {
    let messages = futures::stream::iter(messages.into_iter().map(Ok));
    let read = || FlightRecordBatchStream::new_from_flight_data(messages).try_collect().now_or_never();
    let batches: Vec<RecordBatch> = std::panic::catch_unwind(AssertUnwindSafe(read)).ok()??.ok()?;
    let columns = || batches.iter().flat_map(RecordBatch::columns);
    columns().all(|column| column.to_data().validate_full().is_ok()).then_some(batches)
}

#[tokio::test(flavor = "multi_thread")]
async fn mutated_batches_are_refused_or_arrive_as_arrow_reads_them() {
    let (server, client) = start().await;
    let mut stock = server.stock().await;
    let leaves = leaves::good();
    let (mut stored, mut refused) = (0, 0);
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let leaf = &leaves[random.below(leaves.len())];
        let columns = wrapped(&leaf.name, &leaf.field, &leaf.array);
        let (name, column) = &columns[random.below(columns.len())];
        let mut sent = messages(collect(stream(std::slice::from_ref(column))).await.unwrap());
        for _ in 0..1 + random.below(2) {
            // The schema stays.
            let at = 1 + random.below(sent.len() - 1);
            let part = if random.one_in(3) { &mut sent[at].data_header } else { &mut sent[at].data_body };
            let mut bytes = part.to_vec();
            spoil(&mut bytes, &mut random);
            *part = bytes.into();
        }
        run(&client, "DROP TABLE IF EXISTS m").await;
        let outcome = async {
            let answer = stock.do_put(futures::stream::iter(sent.clone())).await?.into_inner();
            answer.try_collect::<Vec<_>>().await
        };
        match outcome.await {
            Ok(_) => {
                let expected =
                    read(sent).unwrap_or_else(|| panic!("seed {seed}, {name}: it was stored, and is not valid"));
                let got = match async { collect(client.query("FROM m").await?).await }.await {
                    Ok(got) => got,
                    // It is stored, and too long for Arrow on its way out.
                    Err(error) if error.to_string().contains("292 years") => continue,
                    Err(error) => panic!("seed {seed}, {name}: {error}"),
                };
                assert_eq!(values(&got, 0), values(&expected, 0), "seed {seed}, {name}");
                stored += 1;
            }
            Err(status) => {
                let named =
                    matches!(status.code(), Code::InvalidArgument | Code::Unimplemented | Code::ResourceExhausted);
                assert!(named, "seed {seed}, {name}: {status}");
                refused += 1;
            }
        }
    }
    assert_eq!(row(&client, "SELECT 42").await, ["42"]);
    assert!(
        stored > 40 && refused > 40,
        "{stored} were stored and {refused} refused: the mutations do too little or too much"
    );
}
