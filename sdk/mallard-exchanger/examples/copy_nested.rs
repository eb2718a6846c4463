//! Makes lists and structs anew, row by row and item by item: those of whole numbers and texts, with every NULL where it was.
//! Other columns pass as they are. It changes nothing, and shows how nested columns are read and made.

use mallard_exchanger::{exchanger, Batch, Column, Exchanger, Input, Lists, Output, Schema, Strings};

struct CopyNested {
    /// Which columns are made anew.
    made: Vec<bool>,
}

impl Exchanger for CopyNested {
    fn open(input: &Schema, _params: &str) -> Result<(Self, Schema), String> {
        let is_nested = |format: &str| matches!(format, "+l" | "+L" | "+s") || format.starts_with("+w:");
        let made = input.fields.iter().map(|field| is_nested(&field.format)).collect();
        Ok((CopyNested { made }, input.clone()))
    }

    fn reads(&self, column: usize) -> bool {
        self.made[column]
    }

    fn batch(&mut self, input: &Batch, output: &mut Output) -> Result<(), String> {
        for (index, made) in self.made.iter().enumerate() {
            let column = input.column(index);
            if *made {
                output.push(copy(column, &(0..column.rows()).collect::<Vec<_>>())?);
            } else {
                output.push(column);
            }
        }
        Ok(())
    }
}

/// These rows of a column, made anew.
fn copy(column: Input, rows: &[usize]) -> Result<Column, String> {
    let valid: Vec<bool> = rows.iter().map(|row| !column.is_null(*row)).collect();
    let child = |index: usize| column.child(index).ok_or("a nested column has no children");
    let known = |row: &usize| !column.is_null(*row);
    match column.field().format.as_str() {
        "+l" => {
            let (mut lists, mut items) = (Lists::new(), Vec::new());
            for row in rows {
                match column.items(*row)? {
                    Some(own) => {
                        lists.push(own.len());
                        items.extend(own);
                    }
                    None => lists.push_null(),
                }
            }
            Ok(lists.of(copy(child(0)?, &items)?))
        }
        "+L" => {
            let (mut offsets, mut items) = (vec![0], Vec::new());
            for row in rows {
                items.extend(column.items(*row)?.into_iter().flatten());
                offsets.push(items.len() as i64);
            }
            Ok(Column::large_lists(offsets, copy(child(0)?, &items)?).with_validity(&valid))
        }
        "+s" => {
            let parts = 0..column.field().children.len();
            let parts: Result<Vec<Column>, String> = parts.map(|part| copy(child(part)?, rows)).collect();
            Ok(Column::structs(parts?).with_validity(&valid))
        }
        "i" => {
            let values = column.values::<i32>()?;
            Ok(rows.iter().map(|row| Some(values[*row]).filter(|_| known(row))).collect::<Vec<_>>().into())
        }
        "l" => {
            let values = column.values::<i64>()?;
            Ok(rows.iter().map(|row| Some(values[*row]).filter(|_| known(row))).collect::<Vec<_>>().into())
        }
        "u" => {
            let (texts, mut copied) = (column.texts()?, Strings::new());
            for row in rows {
                match texts.get(*row) {
                    Some(text) => copied.push(text),
                    None => copied.push_null(),
                }
            }
            Ok(copied.into())
        }
        fixed if fixed.starts_with("+w:") => {
            let size: usize = fixed[3..].parse().map_err(|_| "a list of no size")?;
            let items: Vec<usize> = rows.iter().flat_map(|row| row * size..(row + 1) * size).collect();
            Ok(Column::fixed_size_lists(size, copy(child(0)?, &items)?).with_validity(&valid))
        }
        other => Err(format!("column \"{}\" is of the type \"{}\", which this example does not make", column.field().name, other)),
    }
}

exchanger!(CopyNested);
