//! Cuts a text column into words: each becomes a row of its own, beside the columns of its text: `{"column": "comment"}`.

use mallard_exchanger::{exchanger, format, Batch, Exchanger, Field, Output, Params, Rows, Schema, Strings};

struct Tokens {
    column: usize,
}

impl Exchanger for Tokens {
    fn open(input: &Schema, params: &str) -> Result<(Self, Schema), String> {
        let params = Params::read(params)?;
        params.only(&["column"])?;
        let column = input.index(params.text("column")?)?;
        let output = input.clone().with(Field::new("position", format::INT32)).with(Field::new("token", format::UTF8));
        Ok((Tokens { column }, output))
    }

    fn reads(&self, column: usize) -> bool {
        column == self.column
    }

    fn batch(&mut self, input: &Batch, output: &mut Output) -> Result<(), String> {
        let texts = input.column(self.column).texts()?;
        let (mut rows, mut positions, mut tokens) = (Vec::new(), Vec::new(), Strings::new());
        for row in 0..input.rows() {
            let words = texts.get(row).unwrap_or_default().split(|c: char| !c.is_alphanumeric());
            for (position, word) in (1_i32..).zip(words.filter(|word| !word.is_empty())) {
                rows.push(row as u32);
                positions.push(position);
                tokens.push(&word.to_lowercase());
            }
        }
        output.pass_rows(input, &Rows::new(rows));
        output.push(positions);
        output.push(tokens);
        Ok(())
    }
}

exchanger!(Tokens);
