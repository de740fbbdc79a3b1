//! Gain tables as people keep them: comma-separated, one bin a line.

use super::{BadTable, Bin, GainTable};

const COLUMNS: [&str; 5] = ["confidence", "rows", "right", "gain", "error"];

impl GainTable {
    /// Lines with a heading: `confidence,rows,right,gain,error` and, where there is a next table, a column for the share of each
    /// of its bins.
    pub fn to_csv(&self) -> String {
        let next = self.bins[0].next.len();
        let mut heading: Vec<String> = COLUMNS.map(str::to_owned).to_vec();
        heading.extend((1..=next).map(|i| format!("next_{i}")));
        let line = |bin: &Bin| {
            let mut line =
                vec![bin.confidence.to_string(), bin.rows.to_string(), bin.right.to_string(), bin.gain.to_string()];
            line.push(bin.error.to_string());
            line.extend(bin.next.iter().map(f32::to_string));
            line.join(",")
        };
        let lines = std::iter::once(heading.join(",")).chain(self.bins.iter().map(line));
        lines.map(|line| line + "\n").collect()
    }

    /// Reads what [`GainTable::to_csv`] writes; lines that begin with # are remarks.
    pub fn from_csv(text: &str) -> Result<GainTable, BadTable> {
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        let heading: Vec<&str> =
            lines.next().map(|(_, line)| line.split(',').map(str::trim).collect()).unwrap_or_default();
        if !heading.starts_with(&COLUMNS) {
            return Err(BadTable(format!(
                "it should begin with the heading {}, as `weir calibrate` writes it",
                COLUMNS.join(",")
            )));
        }
        let bins =
            lines.map(|(i, line)| bin(line, heading.len()).map_err(|what| BadTable(format!("line {}: {what}", i + 1))));
        GainTable::new(bins.collect::<Result<_, _>>()?)
    }
}

fn bin(line: &str, columns: usize) -> Result<Bin, String> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    if fields.len() != columns {
        return Err(format!("{} fields under {columns} headings", fields.len()));
    }
    let number = |i: usize| fields[i].parse::<f64>().map_err(|_| format!("{:?} is no number", fields[i]));
    let rows = fields[1].parse().map_err(|_| format!("{:?} is no count of rows", fields[1]))?;
    let next = (COLUMNS.len()..columns).map(|i| number(i).map(|share| share as f32));
    Ok(Bin {
        confidence: number(0)? as f32,
        rows,
        right: number(2)?,
        gain: number(3)?,
        error: number(4)?,
        next: next.collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let bin = |confidence, next: &[f32]| Bin {
            confidence,
            rows: 61,
            right: 0.1 + 0.2,
            gain: 1.0 / 3.0,
            error: 0.07,
            next: next.to_vec(),
        };
        for bins in [vec![bin(0.3, &[]), bin(0.9, &[])], vec![bin(0.3, &[0.25, 0.75]), bin(0.9, &[0.5, 0.5])]] {
            let table = GainTable::new(bins).unwrap();
            assert_eq!(GainTable::from_csv(&table.to_csv()).unwrap(), table);
            assert_eq!(GainTable::from_csv(&format!("# of a, b\n\n{}", table.to_csv())).unwrap(), table);
        }
    }

    #[test]
    fn what_is_no_table_is_told_with_its_line() {
        let heading = "confidence,rows,right,gain,error\n";
        for (text, word) in [
            (String::new(), "heading"),
            ("a,b,c\n".into(), "heading"),
            (format!("{heading}0.5,3,0.5\n"), "line 2: 3 fields"),
            (format!("{heading}0.5,3,0.5,0.1,0.1\n0.6,x,0.5,0.1,0.1\n"), "line 3: \"x\" is no count"),
            (format!("{heading}0.5,3,0.5,lots,0.1\n"), "line 2: \"lots\" is no number"),
            (format!("{heading}0.5,3,0.5,0.1,0.1\n0.4,3,0.5,0.1,0.1\n"), "ascend"),
            (heading.to_owned(), "no bins"),
        ] {
            let said = GainTable::from_csv(&text).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        }
    }
}
