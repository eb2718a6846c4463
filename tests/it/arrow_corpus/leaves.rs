//! Columns of every type of Arrow's and every extension type that DuckDB knows: ones that DuckDB has, and ones that it has not.

use std::{collections::HashMap, sync::Arc};

use arrow_array::{types::*, *};
use arrow_buffer::{IntervalDayTime, IntervalMonthDayNano, i256};
use arrow_schema::{DataType, Field, FieldRef, Fields, TimeUnit};

pub(super) struct Leaf {
    pub(super) name: String,
    pub(super) field: FieldRef,
    /// Six elements, one of them null.
    pub(super) array: ArrayRef,
    /// What the refusal says, where DuckDB does not have the value or the type.
    pub(super) refused: Option<&'static str>,
}

/// The extension types that DuckDB knows, as name and metadata.
pub(super) const EXTENSIONS: [(&str, &str); 11] = [
    ("arrow.uuid", ""),
    ("arrow.bool8", ""),
    ("arrow.json", ""),
    ("geoarrow.wkb", "{}"),
    ("arrow.parquet.variant", ""),
    ("arrow.opaque", r#"{"type_name":"hugeint","vendor_name":"DuckDB"}"#),
    ("arrow.opaque", r#"{"type_name":"uhugeint","vendor_name":"DuckDB"}"#),
    ("arrow.opaque", r#"{"type_name":"time_tz","vendor_name":"DuckDB"}"#),
    ("arrow.opaque", r#"{"type_name":"bit","vendor_name":"DuckDB"}"#),
    ("arrow.opaque", r#"{"type_name":"bignum","vendor_name":"DuckDB"}"#),
    ("arrow.opaque", r#"{"type_name":"union","vendor_name":"DuckDB"}"#),
];

pub(super) fn extended(data_type: &DataType, (name, metadata): (&str, &str)) -> FieldRef {
    let metadata = [("ARROW:extension:name", name), ("ARROW:extension:metadata", metadata)];
    let metadata: HashMap<_, _> = metadata.map(|(key, value)| (key.to_string(), value.to_string())).into();
    Arc::new(Field::new("item", data_type.clone(), true).with_metadata(metadata))
}

fn leaf(array: impl Array + 'static, refused: Option<&'static str>) -> Leaf {
    let field = Arc::new(Field::new("item", array.data_type().clone(), true));
    Leaf { name: array.data_type().to_string(), field, array: Arc::new(array), refused }
}

fn known(extension: (&str, &str), array: impl Array + 'static, refused: Option<&'static str>) -> Leaf {
    let field = extended(array.data_type(), extension);
    Leaf { name: format!("{} {}", extension.0, extension.1), field, array: Arc::new(array), refused }
}

/// Values that all have their places, with a null among them.
fn some<T: ArrowPrimitiveType>(values: [T::Native; 5]) -> PrimitiveArray<T> {
    let [a, b, c, d, e] = values;
    PrimitiveArray::from_iter([Some(a), None, Some(b), Some(c), Some(d), Some(e)])
}

/// A null in front of it, which counts for nothing although its bytes are out of range as well.
fn bad<T: ArrowPrimitiveType>(value: T::Native) -> PrimitiveArray<T> {
    let good = T::default_value();
    let nulls = [true, true, false, true, true, true].to_vec().into();
    PrimitiveArray::new([good, good, value, value, good, good].to_vec().into(), Some(nulls))
}

pub(super) fn good() -> Vec<Leaf> {
    let mut all = vec![
        leaf(NullArray::new(6), None),
        leaf(BooleanArray::from(vec![Some(true), None, Some(false), Some(true), None, Some(false)]), None),
        leaf(some::<Int8Type>([i8::MIN, -1, 0, 1, i8::MAX]), None),
        leaf(some::<Int16Type>([i16::MIN, -1, 0, 1, i16::MAX]), None),
        leaf(some::<Int32Type>([i32::MIN, -1, 0, 1, i32::MAX]), None),
        leaf(some::<Int64Type>([i64::MIN, -1, 0, 1, i64::MAX]), None),
        leaf(some::<UInt8Type>([0, 1, 2, 3, u8::MAX]), None),
        leaf(some::<UInt16Type>([0, 1, 2, 3, u16::MAX]), None),
        leaf(some::<UInt32Type>([0, 1, 2, 3, u32::MAX]), None),
        leaf(some::<UInt64Type>([0, 1, 2, 3, u64::MAX]), None),
        leaf(some::<Float32Type>([f32::MIN, -0.5, f32::NAN, f32::INFINITY, f32::MAX]), None),
        leaf(some::<Float64Type>([f64::MIN, -0.5, f64::NAN, f64::NEG_INFINITY, f64::MAX]), None),
        leaf(
            Float16Array::from_iter(
                ["-1.5", "0", "NaN", "65504", "inf"].map(|text| text.parse().ok()).into_iter().chain([None]),
            ),
            None,
        ),
        leaf(some::<Date32Type>([-i32::MAX, i32::MAX, -2_147_483_646, 0, 2_147_483_646]), None),
        leaf(some::<Date64Type>([-2_147_483_646, -1, 0, 1, 2_147_483_646].map(|days| days * 86_400_000)), None),
        leaf(some::<Time32SecondType>([0, 1, 43_200, 86_399, 86_400]), None),
        leaf(some::<Time32MillisecondType>([0, 1, 43_200_000, 86_399_999, 86_400_000]), None),
        leaf(some::<Time64MicrosecondType>([0, 1, 2, 86_399_999_999, 86_400_000_000]), None),
        leaf(some::<Time64NanosecondType>([0, 1, 2, 86_399_999_999_999, 86_400_000_000_000]), None),
        leaf(some::<IntervalYearMonthType>([i32::MIN, -1, 0, 1, i32::MAX]), None),
        leaf(
            some::<IntervalDayTimeType>(
                [(i32::MIN, 1), (-1, i32::MIN), (0, 0), (1, 2), (i32::MAX, i32::MAX)]
                    .map(|(d, ms)| IntervalDayTime::new(d, ms)),
            ),
            None,
        ),
        leaf(
            some::<IntervalMonthDayNanoType>(
                [
                    (i32::MIN, i32::MIN, -9_223_372_036_854_775_000),
                    (0, 0, 0),
                    (1, 2, 3000),
                    (-1, -2, -3000),
                    (i32::MAX, i32::MAX, 9_223_372_036_854_775_000),
                ]
                .map(|(m, d, n)| IntervalMonthDayNano::new(m, d, n)),
            ),
            None,
        ),
        leaf(some::<DurationSecondType>([-9_223_372_036, -1, 0, 1, 9_223_372_036]), None),
        leaf(some::<DurationMillisecondType>([-9_223_372_036_854, -1, 0, 1, 9_223_372_036_854]), None),
        leaf(some::<DurationMicrosecondType>([-9_223_372_036_854_775, -1, 0, 1, 9_223_372_036_854_775]), None),
        leaf(
            some::<DurationNanosecondType>([-9_223_372_036_854_775_000, -1000, 0, 1000, 9_223_372_036_854_775_000]),
            None,
        ),
        leaf(
            StringArray::from(vec![
                Some(""),
                None,
                Some("a"),
                Some("ä\0ö"),
                Some("a text that is longer than twelve bytes"),
                Some("🦆"),
            ]),
            None,
        ),
        leaf(
            LargeStringArray::from(vec![
                Some(""),
                None,
                Some("a"),
                Some("ä\0ö"),
                Some("a text that is longer than twelve bytes"),
                Some("🦆"),
            ]),
            None,
        ),
        leaf(
            StringViewArray::from(vec![
                Some(""),
                None,
                Some("a"),
                Some("ä\0ö"),
                Some("a text that is longer than twelve bytes"),
                Some("🦆"),
            ]),
            None,
        ),
        leaf(binary(), None),
        leaf(LargeBinaryArray::from_iter(binary().iter()), None),
        leaf(BinaryViewArray::from_iter(binary().iter()), None),
        leaf(fixed::<3>([Some(*b"abc"), None, Some([0; 3]), Some([255; 3]), Some(*b"xyz"), None]), None),
        leaf(fixed::<0>([Some([]), None, Some([]), Some([]), Some([]), None]), None),
        leaf(some::<Decimal32Type>([-99_999, -1, 0, 1, 99_999]).with_precision_and_scale(5, 2).unwrap(), None),
        leaf(
            some::<Decimal32Type>([-999_999_999, -1, 0, 1, 999_999_999]).with_precision_and_scale(9, 9).unwrap(),
            None,
        ),
        leaf(some::<Decimal64Type>([-9999, -1, 0, 1, 9999]).with_precision_and_scale(4, 0).unwrap(), None),
        leaf(
            some::<Decimal64Type>([-999_999_999_999_999_999, -1, 0, 1, 999_999_999_999_999_999])
                .with_precision_and_scale(18, 3)
                .unwrap(),
            None,
        ),
    ];
    let most = 10_i128.pow(38) - 1;
    for (precision, scale) in [(38, 0), (38, 38), (3, 1), (9, 2), (18, 18), (19, 4)] {
        let most = 10_i128.pow(precision.into()) - 1;
        let values = some::<Decimal128Type>([-most, -1, 0, 1, most]);
        all.push(leaf(values.with_precision_and_scale(precision, scale).unwrap(), None));
    }
    let wide = some::<Decimal256Type>([-most, -1, 0, 1, most].map(i256::from_i128));
    all.push(leaf(wide.with_precision_and_scale(38, 10).unwrap(), None));
    for zone in [None, Some("UTC"), Some("+02:00")] {
        let ends = |scale: i64| [-9_223_372_022_400_000_000 / scale, -1, 0, 1, (i64::MAX - 1) / scale];
        let zone = zone.map(Arc::<str>::from);
        all.push(leaf(some::<TimestampSecondType>(ends(1_000_000)).with_timezone_opt(zone.clone()), None));
        all.push(leaf(some::<TimestampMillisecondType>(ends(1_000)).with_timezone_opt(zone.clone()), None));
        all.push(leaf(some::<TimestampMicrosecondType>(ends(1)).with_timezone_opt(zone.clone()), None));
        let nanos = [-9_223_286_400_000_000_000, -1, 0, i64::MAX, -i64::MAX];
        all.push(leaf(some::<TimestampNanosecondType>(nanos).with_timezone_opt(zone.clone()), None));
        let infinite = some::<TimestampMicrosecondType>([i64::MAX, -i64::MAX, 0, 1, 2]);
        all.push(leaf(infinite.with_timezone_opt(zone), None));
    }
    all.push(leaf(some::<TimestampSecondType>([i64::MAX, -i64::MAX, 0, 1, 2]), None));
    let [uuid, bool8, json, wkb, variant, hugeint, uhugeint, time_tz, bit, bignum, union] = EXTENSIONS;
    let wide =
        || fixed::<16>([Some([0; 16]), None, Some([255; 16]), Some([7; 16]), Some(u128::MAX.to_be_bytes()), None]);
    let texts = [Some("{\"a\": [1, null]}"), None, Some("[NaN, 1,]"), Some("1"), Some("\"x\""), Some("null")];
    let point = [&[1, 1, 0, 0, 0][..], &[0; 16]].concat();
    let points = [Some(point.as_slice()), None, Some(&point), Some(&point), Some(&point), Some(&point)];
    let bits = [Some(&[7, 0xff][..]), None, Some(&[0, 0xa5]), Some(&[3, 0xe1, 1]), Some(&[0, 0]), Some(&[1, 0x80])];
    let numbers = [
        Some(&[0x80, 0, 1, 0][..]),
        None,
        Some(&[0x80, 0, 1, 1]),
        Some(&[0x7f, 0xff, 0xfe, !1]),
        Some(&[0x80, 0, 2, 1, 0]),
        None,
    ];
    let zoned = |micros: u64, offset: u64| Some((micros << 24 | offset).to_le_bytes());
    let times = [zoned(0, 57_599), None, zoned(86_400_000_000, 0), zoned(1, 2 * 57_599), zoned(5, 50_399), None];
    all.extend([
        known(uuid, wide(), None),
        known(hugeint, wide(), None),
        known(uhugeint, wide(), None),
        known(bool8, Int8Array::from(vec![Some(0), None, Some(1), Some(-1), Some(2), Some(127)]), None),
        known(json, StringArray::from(texts.to_vec()), None),
        known(json, LargeStringArray::from(texts.to_vec()), None),
        known(json, StringViewArray::from(texts.to_vec()), None),
        known(wkb, BinaryArray::from_iter(points), None),
        known(wkb, BinaryViewArray::from_iter(points), None),
        known(bit, BinaryArray::from_iter(bits), None),
        known(bit, LargeBinaryArray::from_iter(bits), None),
        known(bignum, BinaryArray::from_iter(numbers), None),
        known(time_tz, fixed::<8>(times), None),
        known(union, Int32Array::from(vec![1, 2, 3, 4, 5, 6]), None),
        known(("arrow.fixed_shape_tensor", "{\"shape\":[2]}"), binary(), None),
        known(("arrow.opaque", "not JSON"), binary(), None),
        known(("somebody.else", "?"), binary(), None),
        known(variant, variants(&[b"\0", &[5 << 2, 1, 0, 0, 0], &[1 | 1 << 2, b'x'], &[1 << 2]], 2), None),
    ]);
    all
}

/// Values of the storage that VARIANT has, with so many rows of nulls behind them.
fn variants(values: &[&[u8]], nulls: usize) -> StructArray {
    let values = values.iter().map(|value| Some(*value)).chain(std::iter::repeat_n(None, nulls));
    let values = BinaryArray::from_iter(values.map(|value| Some(value.unwrap_or(&[0]))));
    let metadata = BinaryArray::from_iter_values((0..values.len()).map(|_| [1_u8, 0, 0]));
    let fields = [("metadata", false), ("value", true)].map(|(name, null)| Field::new(name, DataType::Binary, null));
    let valid: Vec<bool> = (0..values.len()).map(|row| row + nulls < values.len()).collect();
    StructArray::new(Fields::from(fields.to_vec()), vec![Arc::new(metadata), Arc::new(values)], Some(valid.into()))
}

fn binary() -> BinaryArray {
    BinaryArray::from_opt_vec(vec![Some(b""), None, Some(b"a"), Some(b"\x00\xff"), Some(&[7; 40]), Some(b"b")])
}

fn fixed<const N: usize>(values: [Option<[u8; N]>; 6]) -> FixedSizeBinaryArray {
    FixedSizeBinaryArray::try_from_sparse_iter_with_size(values.into_iter(), N as i32).unwrap()
}

/// Values that DuckDB does not have: in row 4, where it is not nested.
pub(super) fn bad_values() -> Vec<Leaf> {
    let beyond = Some("outside");
    let digits = Some("more digits");
    let mut all = vec![
        leaf(bad::<Date32Type>(i32::MIN), Some("before the first DATE")),
        leaf(bad::<Date64Type>(i64::MAX / 86_400_000 * 86_400_000), beyond),
        leaf(bad::<Date64Type>(1), Some("not a whole day")),
        leaf(bad::<Time32SecondType>(-5), beyond),
        leaf(bad::<Time32SecondType>(86_401), beyond),
        leaf(bad::<Time32MillisecondType>(-5), beyond),
        leaf(bad::<Time32MillisecondType>(i32::MAX), beyond),
        leaf(bad::<Time64MicrosecondType>(-5), beyond),
        leaf(bad::<Time64MicrosecondType>(86_400_000_001), beyond),
        leaf(bad::<Time64NanosecondType>(i64::MIN), beyond),
        leaf(bad::<Time64NanosecondType>(86_400_000_000_001), beyond),
        leaf(bad::<DurationSecondType>(i64::MAX), beyond),
        leaf(bad::<DurationMillisecondType>(i64::MIN), beyond),
        leaf(bad::<DurationMicrosecondType>(i64::MIN), beyond),
        leaf(bad::<DurationNanosecondType>(1), Some("finer")),
        leaf(bad::<IntervalMonthDayNanoType>(IntervalMonthDayNano::new(0, 0, 1)), Some("finer")),
        leaf(bad::<Decimal32Type>(100_000).with_precision_and_scale(5, 2).unwrap(), digits),
        leaf(bad::<Decimal64Type>(-100_000).with_precision_and_scale(5, 2).unwrap(), digits),
        leaf(bad::<Decimal128Type>(100_000).with_precision_and_scale(5, 2).unwrap(), digits),
        leaf(bad::<Decimal128Type>(i128::MIN).with_precision_and_scale(38, 2).unwrap(), digits),
        leaf(bad::<Decimal256Type>(i256::MAX).with_precision_and_scale(38, 2).unwrap(), digits),
    ];
    for zone in [None, Some("UTC")] {
        for value in [i64::MIN, i64::MIN + 2] {
            let zone = zone.map(Arc::<str>::from);
            all.push(leaf(bad::<TimestampSecondType>(value).with_timezone_opt(zone.clone()), beyond));
            all.push(leaf(bad::<TimestampMillisecondType>(value).with_timezone_opt(zone.clone()), beyond));
            all.push(leaf(bad::<TimestampMicrosecondType>(value).with_timezone_opt(zone.clone()), beyond));
            all.push(leaf(bad::<TimestampNanosecondType>(value).with_timezone_opt(zone.clone()), beyond));
        }
    }
    let [_, _, json, wkb, variant, _, _, time_tz, bit, bignum, _] = EXTENSIONS;
    let bytes = |good: &[u8], value: &[u8]| {
        let values = [Some(good), Some(good), None, Some(value), Some(good), Some(good)];
        BinaryArray::from_iter(values)
    };
    let point = [&[1, 1, 0, 0, 0][..], &[0; 16]].concat();
    for value in [&[][..], &[0], &[8, 1], &[3, 0]] {
        all.push(known(bit, bytes(&[0, 1], value), Some("malformed")));
    }
    for value in [&[][..], &[0x80, 0], &[0x80, 0, 1], &[0x80, 0, 9, 1], &[0x7f, 0xff, 0xff]] {
        all.push(known(bignum, bytes(&[0x80, 0, 1, 1], value), Some("malformed")));
    }
    for value in [&[][..], &point[..9], &[1, 3, 0, 0, 0, 255, 255, 255, 255], &[2, 1, 0, 0, 0]] {
        all.push(known(wkb, bytes(&point, value), Some("malformed")));
    }
    for text in ["", "{", "nope", "[1]]"] {
        let texts = [Some("1"), Some("{}"), None, Some(text), Some("[]"), Some("2")];
        all.push(known(json, StringArray::from(texts.to_vec()), Some("not JSON")));
    }
    for value in [86_400_000_001 << 24, 2 * 57_599 + 1, u64::MAX] {
        let good = Some([0; 8]);
        let times = [good, good, None, Some(u64::to_le_bytes(value)), good, good];
        all.push(known(time_tz, fixed::<8>(times), beyond));
    }
    for value in
        [&[][..], &[5 << 2, 1], &[2, 9], &[0, 0], &[63 << 2], &[17 << 2, 255, 255, 255, 255, 255, 255, 255, 255]]
    {
        all.push(known(variant, variants(&[b"\0", b"\0", b"\0", value, b"\0", b"\0"], 0), Some("malformed")));
    }
    all
}

/// Types that DuckDB does not have.
pub(super) fn bad_types() -> Vec<Leaf> {
    let decimal = |precision, scale| {
        // SAFETY: a buffer of as many values as it says; arrow-rs has no such precision.
        let data = Decimal128Array::from(vec![1, 2, 3, 4, 5, 6]).into_data().into_builder();
        make_array(unsafe { data.data_type(DataType::Decimal128(precision, scale)).build_unchecked() })
    };
    let mut all = vec![
        leaf(some::<Decimal256Type>([i256::ONE; 5]).with_precision_and_scale(76, 2).unwrap(), Some("38 digits")),
        leaf(some::<Decimal128Type>([1; 5]).with_precision_and_scale(5, -2).unwrap(), Some("scale")),
    ];
    for (precision, scale) in [(0, 0), (5, 6)] {
        let array = decimal(precision, scale);
        let field = Arc::new(Field::new("item", array.data_type().clone(), true));
        all.push(Leaf { name: array.data_type().to_string(), field, array, refused: Some("precision") });
    }
    all
}

/// Storages of all kinds, for extension types to lie over.
pub(super) fn storages() -> Vec<ArrayRef> {
    let item = Arc::new(Field::new("item", DataType::Int32, true));
    let kinds = [
        DataType::Null,
        DataType::Boolean,
        DataType::Int8,
        DataType::Int32,
        DataType::UInt64,
        DataType::Float64,
        DataType::Utf8,
        DataType::LargeUtf8,
        DataType::Utf8View,
        DataType::Binary,
        DataType::LargeBinary,
        DataType::BinaryView,
        DataType::FixedSizeBinary(0),
        DataType::FixedSizeBinary(1),
        DataType::FixedSizeBinary(8),
        DataType::FixedSizeBinary(15),
        DataType::FixedSizeBinary(16),
        DataType::FixedSizeBinary(17),
        DataType::Date32,
        DataType::Time64(TimeUnit::Microsecond),
        DataType::Timestamp(TimeUnit::Second, None),
        DataType::Decimal128(38, 0),
        DataType::List(item.clone()),
        DataType::FixedSizeList(item.clone(), 2),
        DataType::Struct(vec![item].into()),
        DataType::Struct(Fields::empty()),
        DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8)),
    ];
    kinds.iter().map(|kind| new_null_array(kind, 6)).collect()
}

/// Whether the specification stores the extension type so.
pub(super) fn is_storage((name, metadata): (&str, &str), storage: &DataType) -> bool {
    use DataType::*;
    let binary = matches!(storage, Binary | LargeBinary | BinaryView);
    match name {
        "arrow.uuid" => *storage == FixedSizeBinary(16),
        "arrow.bool8" => *storage == Int8,
        "arrow.json" => {
            matches!(storage, Utf8 | LargeUtf8 | Utf8View)
                || matches!(storage, Dictionary(_, values) if **values == Utf8)
        }
        "geoarrow.wkb" => binary,
        "arrow.parquet.variant" => false,
        _ if metadata.contains("huge") => *storage == FixedSizeBinary(16),
        _ if metadata.contains("time_tz") => *storage == FixedSizeBinary(8),
        _ if metadata.contains("bit") || metadata.contains("bignum") => binary,
        _ => true,
    }
}
