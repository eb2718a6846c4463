//! What Arrow's JDBC driver sends, call by call, as its sources and documentation have it: the driver itself cannot be
//! installed here.
//!
//! It logs in with a Basic header on Handshake and goes on with the bearer token it got (ClientIncomingAuthHeaderMiddleware),
//! keeps cookies, asks SqlInfo, and prepares every statement: the one without columns is run by DoPut, the others by
//! GetFlightInfo and a DoGet of each endpoint.

use arrow_array::{Int32Array, RecordBatch};
use arrow_flight::{
    Action, FlightData, FlightInfo, HandshakeRequest, IpcMessage,
    encode::FlightDataEncoderBuilder,
    flight_service_client::FlightServiceClient,
    sql::{
        ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
        Any, CommandGetSqlInfo, CommandPreparedStatementQuery, CommandPreparedStatementUpdate, DoPutUpdateResult,
        ProstMessageExt, SqlInfo,
    },
};
use arrow_schema::Schema;
use base64::Engine as _;
use bytes::Bytes;
use futures::{TryStreamExt, stream};
use prost::Message;
use tonic::{Request, transport::Channel};

use super::{message, texts};
use crate::support::{PASSWORD, TestServer, USER, test_config, with_login};

/// One connection of the driver: a channel, and the headers that it sends with each call.
struct Driver {
    client: FlightServiceClient<Channel>,
    bearer: String,
    cookie: Option<String>,
}

impl Driver {
    async fn connect(server: &TestServer) -> Self {
        let mut client = server.stock().await;
        let mut request = Request::new(stream::empty::<HandshakeRequest>());
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
        request.metadata_mut().insert("authorization", format!("Basic {basic}").parse().unwrap());
        let answer = client.handshake(request).await.unwrap();
        let bearer = answer.metadata().get("authorization").unwrap().to_str().unwrap().to_string();
        assert!(bearer.starts_with("Bearer "), "{bearer}");
        assert!(answer.into_inner().try_collect::<Vec<_>>().await.unwrap().is_empty());
        Self { client, bearer, cookie: None }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.bearer.parse().unwrap());
        if let Some(cookie) = &self.cookie {
            request.metadata_mut().insert("cookie", cookie.parse().unwrap());
        }
        // It forwards what it does not know of the URL as headers.
        request.metadata_mut().insert("useencryption", "false".parse().unwrap());
        request
    }

    async fn action(&mut self, name: &str, body: Vec<u8>) -> Vec<Bytes> {
        let answer = self.client.do_action(self.request(Action::new(name, body))).await.unwrap();
        if let Some(cookie) = answer.metadata().get("set-cookie") {
            self.cookie = Some(cookie.to_str().unwrap().split(';').next().unwrap().to_string());
        }
        let results: Vec<_> = answer.into_inner().try_collect().await.unwrap();
        results.into_iter().map(|result| result.body).collect()
    }

    async fn prepare(&mut self, sql: &str) -> (Bytes, Schema, Schema) {
        let request = ActionCreatePreparedStatementRequest { query: sql.into(), transaction_id: None };
        let results = self.action("CreatePreparedStatement", request.as_any().encode_to_vec()).await;
        let created: ActionCreatePreparedStatementResult =
            Any::decode(results[0].clone()).unwrap().unpack().unwrap().unwrap();
        let schema = |bytes: Bytes| Schema::try_from(IpcMessage(bytes)).expect("an IPC schema");
        (created.prepared_statement_handle, schema(created.dataset_schema), schema(created.parameter_schema))
    }

    async fn put(&mut self, data: Vec<FlightData>) -> Bytes {
        let request = self.request(stream::iter(data));
        let results: Vec<_> = self.client.do_put(request).await.unwrap().into_inner().try_collect().await.unwrap();
        results.into_iter().next().unwrap().app_metadata
    }

    async fn read(&mut self, info: &FlightInfo) -> Vec<RecordBatch> {
        let mut batches = Vec::new();
        for endpoint in &info.endpoint {
            let request = self.request(endpoint.ticket.clone().unwrap());
            let data = self.client.do_get(request).await.unwrap().into_inner().map_err(|status| status.into());
            let stream = arrow_flight::decode::FlightRecordBatchStream::new_from_flight_data(data);
            batches.extend(stream.try_collect::<Vec<_>>().await.unwrap());
        }
        batches
    }

    /// executeUpdate: a DoPut, with the parameters that were set, or with a schema without fields.
    async fn update(&mut self, sql: &str, parameters: Option<RecordBatch>) -> i64 {
        let (handle, columns, _) = self.prepare(sql).await;
        assert!(columns.fields().is_empty(), "what the driver tells an update by");
        let parameters = parameters.unwrap_or_else(|| RecordBatch::new_empty(Schema::empty().into()));
        let update = CommandPreparedStatementUpdate { prepared_statement_handle: handle.clone() };
        let data = FlightDataEncoderBuilder::new()
            .with_flight_descriptor(Some(message(&update)))
            .with_schema(parameters.schema())
            .build(stream::iter([Ok(parameters)]));
        let answer = self.put(data.try_collect().await.unwrap()).await;
        self.close(handle).await;
        DoPutUpdateResult::decode(answer).unwrap().record_count
    }

    async fn close(&mut self, handle: Bytes) {
        let request = ActionClosePreparedStatementRequest { prepared_statement_handle: handle };
        self.action("ClosePreparedStatement", request.as_any().encode_to_vec()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_the_jdbc_driver_are_answered() {
    let server = TestServer::with(with_login(test_config())).await;
    let mut driver = Driver::connect(&server).await;
    // DatabaseMetaData.
    let ids = [SqlInfo::FlightSqlServerName, SqlInfo::FlightSqlServerVersion, SqlInfo::FlightSqlServerReadOnly];
    let command = CommandGetSqlInfo { info: ids.map(|id| id as u32).to_vec() };
    let request = driver.request(message(&command));
    let info = driver.client.get_flight_info(request).await.unwrap().into_inner();
    let facts = driver.read(&info).await;
    assert_eq!(facts.iter().map(RecordBatch::num_rows).sum::<usize>(), 3);
    // Statement.execute of DDL, and executeUpdate.
    assert_eq!(driver.update("CREATE TABLE t (i INTEGER, s VARCHAR)", None).await, 0);
    assert_eq!(driver.update("INSERT INTO t VALUES (1, 'a'), (2, 'b')", None).await, 2);
    // PreparedStatement with parameters, by the types that it was told.
    let values = |values: &[i32]| {
        let column: arrow_array::ArrayRef = std::sync::Arc::new(Int32Array::from(values.to_vec()));
        RecordBatch::try_from_iter([("1", column)]).unwrap()
    };
    assert_eq!(driver.update("INSERT INTO t VALUES (?, 'c')", Some(values(&[3, 4, 5]))).await, 3, "a batch");
    let (handle, columns, parameters) = driver.prepare("SELECT s FROM t WHERE i < ? ORDER BY i").await;
    assert_eq!(columns.field(0).name(), "s");
    assert_eq!(parameters.field(0).data_type(), &arrow_schema::DataType::Int32);
    let query = CommandPreparedStatementQuery { prepared_statement_handle: handle.clone() };
    for (bound, expected) in [(3, vec!["a", "b"]), (2, vec!["a"])] {
        let data = FlightDataEncoderBuilder::new()
            .with_flight_descriptor(Some(message(&query)))
            .build(stream::iter([Ok(values(&[bound]))]));
        driver.put(data.try_collect().await.unwrap()).await;
        let request = driver.request(message(&query));
        let info = driver.client.get_flight_info(request).await.unwrap().into_inner();
        assert_eq!(texts(&driver.read(&info).await), expected);
    }
    driver.close(handle).await;
    // A catalog in the URL becomes a session option; at the end the session is closed.
    driver.action("GetSessionOptions", Vec::new()).await;
    driver.action("CloseSession", Vec::new()).await;
    let request = driver.request(message(&query));
    assert_eq!(driver.client.get_flight_info(request).await.unwrap_err().code(), tonic::Code::Unauthenticated);
}
