//! Tensors on the wire: raw and typed, every datatype, outputs as they are asked for.

use sensorium_proto::inference::{InferTensorContents, ModelInferRequest};
use sensorium_tests::samples::picture;
use sensorium_tests::{Ask, Refusal, chaos};

use super::client;

/// A request whose values are typed.
fn typed(model: &str, name: &str, datatype: &str, shape: &[i64], contents: InferTensorContents) -> Ask {
    let mut ask = Ask::of(model).raw(name, datatype, shape, Vec::new());
    ask.message.raw_input_contents.clear();
    ask.message.inputs[0].contents = Some(contents);
    ask
}

#[tokio::test]
async fn raw_and_typed_values_are_the_same() {
    let client = client().await;
    let values: Vec<f32> = (0..32u8).map(|n| f32::from(n) / 7.0).collect();
    let raw = client.infer(Ask::of("identity").fp32("INPUT0", &[2, 16], &values).id("seven")).await.unwrap();
    assert_eq!((raw.fp32("OUTPUT0"), raw.shape("OUTPUT0")), (values.clone(), vec![2, 16]));
    assert_eq!(
        (raw.0.id.as_str(), raw.0.model_name.as_str(), raw.0.model_version.as_str()),
        ("seven", "identity", "1")
    );
    let contents = InferTensorContents { fp32_contents: values.clone(), ..Default::default() };
    let same = client.infer(typed("identity", "INPUT0", "FP32", &[2, 16], contents)).await.unwrap();
    assert_eq!(same.fp32("OUTPUT0"), values);

    let text = b"typed or raw".to_vec();
    let contents = InferTensorContents { bytes_contents: vec![text.clone().into()], ..Default::default() };
    let typed = client.infer(typed("minilm", "text", "BYTES", &[1], contents)).await.unwrap();
    let raw = client.infer(Ask::of("minilm").bytes("text", &[text])).await.unwrap();
    assert!(sensorium_tests::cosine(&typed.fp32("embedding"), &raw.fp32("embedding")) > 0.9999);
}

/// All datatypes are read; a model that takes another one says so.
#[tokio::test]
async fn every_datatype_is_known() {
    let client = client().await;
    let sizes = [
        ("BOOL", 1),
        ("UINT8", 1),
        ("UINT16", 2),
        ("UINT32", 4),
        ("UINT64", 8),
        ("INT8", 1),
        ("INT16", 2),
        ("INT32", 4),
        ("INT64", 8),
        ("FP16", 2),
        ("BF16", 2),
        ("FP64", 8),
    ];
    for (datatype, size) in sizes {
        let right = Ask::of("identity").raw("INPUT0", datatype, &[1, 16], vec![0; 16 * size]);
        Refusal::of(client.infer(right).await).blames("INPUT0", &[datatype, "expected FP32"]);
        let short = Ask::of("identity").raw("INPUT0", datatype, &[1, 16], vec![0; 16 * size - 1]);
        let given = format!("{} bytes given", 16 * size - 1);
        Refusal::of(client.infer(short).await).blames("INPUT0", &[&given, &(16 * size).to_string()]);
    }
    Refusal::of(client.infer(Ask::of("identity").bytes("INPUT0", &[""; 16])).await)
        .blames("INPUT0", &["expected FP32"]);
    let unknown = Ask::of("identity").raw("INPUT0", "FP8", &[1, 16], vec![0; 16]);
    Refusal::of(client.infer(unknown).await).blames("inputs[0].datatype", &["FP8", "BF16"]);
}

#[tokio::test]
async fn typed_values_of_every_datatype_are_read() {
    let client = client().await;
    let rows = |contents: InferTensorContents, datatype: &str| typed("identity", "INPUT0", datatype, &[1, 2], contents);
    let empty = InferTensorContents::default;
    let kinds = [
        ("BOOL", InferTensorContents { bool_contents: vec![true, false], ..empty() }),
        ("INT8", InferTensorContents { int_contents: vec![-1, 127], ..empty() }),
        ("INT16", InferTensorContents { int_contents: vec![-1, 32767], ..empty() }),
        ("INT32", InferTensorContents { int_contents: vec![-1, 1], ..empty() }),
        ("INT64", InferTensorContents { int64_contents: vec![-1, 1], ..empty() }),
        ("UINT8", InferTensorContents { uint_contents: vec![0, 255], ..empty() }),
        ("UINT16", InferTensorContents { uint_contents: vec![0, 65535], ..empty() }),
        ("UINT32", InferTensorContents { uint_contents: vec![0, 1], ..empty() }),
        ("UINT64", InferTensorContents { uint64_contents: vec![0, 1], ..empty() }),
        ("FP64", InferTensorContents { fp64_contents: vec![0.0, 1.0], ..empty() }),
    ];
    for (datatype, contents) in kinds {
        // well-formed: what is wrong is that the model takes another datatype
        let refusal = Refusal::of(client.infer(rows(contents, datatype)).await);
        refusal.blames("INPUT0.datatype", &[datatype, "expected FP32"]);
    }
    let wide = InferTensorContents { int_contents: vec![300, 0], ..empty() };
    Refusal::of(client.infer(rows(wide, "INT8")).await).blames("inputs[0].contents", &["300", "127"]);
    let elsewhere = InferTensorContents { int_contents: vec![1, 2], ..empty() };
    Refusal::of(client.infer(rows(elsewhere, "FP32")).await).blames("inputs[0].contents", &["fp32_contents"]);
    let half = InferTensorContents { fp32_contents: vec![1.0, 2.0], ..empty() };
    Refusal::of(client.infer(rows(half, "FP16")).await).blames("inputs[0].contents", &["raw_input_contents"]);
}

#[tokio::test]
async fn malformed_tensors_are_named() {
    let client = client().await;
    let row = [0.0; 16];
    let good = || Ask::of("identity").fp32("INPUT0", &[1, 16], &row);
    let mut both = good();
    both.message.inputs[0].contents = Some(InferTensorContents { fp32_contents: row.to_vec(), ..Default::default() });
    Refusal::of(client.infer(both).await).blames("INPUT0", &["twice"]);
    let mut extra = good();
    extra.message.raw_input_contents.push(Vec::new().into());
    Refusal::of(client.infer(extra).await).blames("raw_input_contents", &["2 given"]);
    for shape in [vec![-1, 16], vec![i64::MAX, i64::MAX]] {
        let ask = Ask::of("identity").fp32("INPUT0", &shape, &row);
        Refusal::of(client.infer(ask).await).blames("INPUT0", &["not a valid shape"]);
    }
    for shape in [vec![16], vec![1, 4, 4], vec![2, 8]] {
        let ask = Ask::of("identity").fp32("INPUT0", &shape, &row);
        Refusal::of(client.infer(ask).await).blames("INPUT0.shape", &["expected [-1, 16]"]);
    }
    let none = Ask::of("identity").fp32("INPUT0", &[0, 16], &[]);
    Refusal::of(client.infer(none).await).blames("INPUT0.shape", &["0 rows"]);
    // BYTES whose length runs past the end, and whose count is not that of the shape
    let past = Ask::of("minilm").raw("text", "BYTES", &[1], vec![200, 0, 0, 0, b'a']);
    Refusal::of(client.infer(past).await).blames("text", &["200", "1 are left"]);
    let cut = Ask::of("minilm").raw("text", "BYTES", &[1], vec![1, 0]);
    Refusal::of(client.infer(cut).await).blames("text", &["BYTES"]);
    let few = Ask::of("minilm").raw("text", "BYTES", &[2], vec![1, 0, 0, 0, b'a']);
    Refusal::of(client.infer(few).await).blames("text", &["1 BYTES elements"]);
    let latin = Ask::of("minilm").bytes("text", &[[0xff, 0xfe]]);
    Refusal::of(client.infer(latin).await).blames("text[0]", &["UTF-8"]);
}

#[tokio::test]
async fn inputs_are_those_of_the_model() {
    let client = client().await;
    let row = [0.0; 16];
    let other = Ask::of("identity").fp32("INPUT1", &[1, 16], &row);
    Refusal::of(client.infer(other).await).blames("inputs[0].name", &["INPUT1", "INPUT0"]);
    let twice = Ask::of("identity").fp32("INPUT0", &[1, 16], &row).fp32("INPUT0", &[1, 16], &row);
    Refusal::of(client.infer(twice).await).blames("inputs[1].name", &["twice"]);
    Refusal::of(client.infer(Ask::of("identity")).await).blames("INPUT0", &["missing"]);
    let output = chaos("identity", 0.0, 0.0).output("OUTPUT9");
    Refusal::of(client.infer(output).await).blames("outputs[0].name", &["OUTPUT9", "OUTPUT0"]);
    // a column of BYTES is a vector
    let column = Ask::of("minilm").raw("text", "BYTES", &[2, 1], vec![1, 0, 0, 0, b'a', 1, 0, 0, 0, b'b']);
    assert_eq!(client.infer(column).await.unwrap().shape("embedding"), [2, 384]);
}

#[tokio::test]
async fn outputs_come_as_they_are_asked_for() {
    let client = client().await;
    let ask = || Ask::of("efficientnet-lite0").bytes("image", &[picture("coffee.png")]);
    let names = |given: &sensorium_tests::Given| {
        given.0.outputs.iter().map(|output| output.name.clone()).collect::<Vec<_>>().join(" ")
    };
    let all = client.infer(ask()).await.unwrap();
    assert_eq!(all.0.outputs.len(), 3, "{}", names(&all));
    let one = client.infer(ask().output("labels")).await.unwrap();
    assert_eq!(names(&one), "labels");
    let classes = client.infer(ask().output_with("probabilities", &[("classification", 3)])).await.unwrap();
    assert_eq!(classes.shape("probabilities"), [1, 3]);
    let classes = classes.texts("probabilities");
    let parts: Vec<&str> = classes[0].split(':').collect();
    let [value, index, label] = parts.try_into().unwrap();
    assert!(value.parse::<f32>().unwrap() > 0.5 && index == "967" && label.contains("espresso"), "{classes:?}");
}

#[tokio::test]
async fn more_rows_than_a_batch_takes_come_back_in_order() {
    let client = client().await;
    let values: Vec<f32> = (0..200u16).flat_map(|row| [f32::from(row); 16]).collect();
    let given = client.infer(Ask::of("identity").fp32("INPUT0", &[200, 16], &values)).await.unwrap();
    assert_eq!((given.shape("OUTPUT0"), given.fp32("OUTPUT0")), (vec![200, 16], values));
}

#[tokio::test]
async fn an_empty_request_is_a_refusal() {
    let client = client().await;
    let answer = client.inference.clone().model_infer(ModelInferRequest::default()).await;
    assert_eq!(Refusal::of(answer).code, tonic::Code::NotFound);
}
