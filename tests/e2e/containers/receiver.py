"""Receives spans (OTLP over gRPC) and writes one line of JSON for each: receiver.py HOST FILE. Prints its port."""

import json
import sys
from concurrent import futures

import grpc
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, file):
        self.file = file

    def Export(self, request, context):
        for spans in request.resource_spans:
            resource = {one.key: one.value.string_value for one in spans.resource.attributes}
            for span in (span for scope in spans.scope_spans for span in scope.spans):
                told = {
                    "service": resource.get("service.name"),
                    "name": span.name,
                    "kind": span.kind,
                    "trace": span.trace_id.hex(),
                    "span": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "everything": MessageToDict(span),
                }
                self.file.write(json.dumps(told) + "\n")
        self.file.flush()
        return trace_service_pb2.ExportTraceServiceResponse()


def main():
    host, file = sys.argv[1:]
    with open(file, "a") as file:
        server = grpc.server(futures.ThreadPoolExecutor(1))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Receiver(file), server)
        port = server.add_insecure_port(f"{host}:0")
        server.start()
        print(port, flush=True)
        server.wait_for_termination()


main()
