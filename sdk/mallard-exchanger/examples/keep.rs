//! Keeps the rows in which a column of whole numbers is above a bound: `{"column": "DEP_DELAY", "above": 15}`.
//!
//! The module reads that one column only, and answers row numbers; the host picks the rows of all columns.

use mallard_exchanger::{exchanger, Batch, Exchanger, Input, Output, Params, Rows, Schema};

struct Keep {
    column: usize,
    above: i64,
}

impl Exchanger for Keep {
    fn open(input: &Schema, params: &str) -> Result<(Self, Schema), String> {
        let params = Params::read(params)?;
        params.only(&["column", "above"])?;
        let column = input.index(params.text("column")?)?;
        Ok((Keep { column, above: params.integer("above")? }, input.clone()))
    }

    fn reads(&self, column: usize) -> bool {
        column == self.column
    }

    fn batch(&mut self, input: &Batch, output: &mut Output) -> Result<(), String> {
        let column = input.column(self.column);
        let rows = match column.field().format.as_str() {
            "s" => self.rows(column, column.values::<i16>()?),
            "i" => self.rows(column, column.values::<i32>()?),
            _ => self.rows(column, column.values::<i64>()?),
        };
        if !rows.is_empty() {
            output.pass_rows(input, &rows);
        }
        Ok(())
    }
}

impl Keep {
    fn rows<T: Copy + Into<i64>>(&self, column: Input, values: &[T]) -> Rows {
        let kept = values.iter().zip(0_u32..).filter(|(value, _)| (**value).into() > self.above);
        let kept = kept.map(|(_, row)| row).filter(|row| !column.is_null(*row as usize));
        Rows::new(kept.collect())
    }
}

exchanger!(Keep);
