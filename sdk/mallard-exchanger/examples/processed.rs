//! Appends a BOOLEAN column `processed` that is true in every row: the exchanger of the original's demonstration.

use mallard_exchanger::{exchanger, format, Batch, Column, Exchanger, Field, Output, Schema};

struct Processed;

impl Exchanger for Processed {
    fn open(input: &Schema, _params: &str) -> Result<(Self, Schema), String> {
        if input.index("processed").is_ok() {
            return Err("the input has a column \"processed\" already".into());
        }
        Ok((Processed, input.clone().with(Field::new("processed", format::BOOL))))
    }

    fn reads(&self, _column: usize) -> bool {
        false
    }

    fn batch(&mut self, input: &Batch, output: &mut Output) -> Result<(), String> {
        output.pass(input);
        output.push(Column::repeated(true, input.rows()));
        Ok(())
    }
}

exchanger!(Processed);
