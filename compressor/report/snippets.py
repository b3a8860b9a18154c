"""Programs that run a compressed file, written for its own inputs and outputs: Python, JavaScript, C++, Android, iOS.

Names come from models and may hold anything: each stands as a string of the language it is written into.
"""

import json
import math
from dataclasses import dataclass

from compressor.report.use import Interface, Port

_JAVASCRIPT = {
    "float32": "Float32Array", "float64": "Float64Array", "int64": "BigInt64Array", "uint64": "BigUint64Array",
    "int32": "Int32Array", "uint32": "Uint32Array", "int16": "Int16Array", "uint16": "Uint16Array",
    "int8": "Int8Array", "uint8": "Uint8Array", "bool": "Uint8Array",
}  # fmt: skip
_CPP = {
    "float32": "float", "float64": "double", "bool": "bool",
    **{f"{kind}{bits}": f"{kind}{bits}_t" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}  # fmt: skip
_KOTLIN = {"float32": "FloatBuffer", "float64": "DoubleBuffer", "int64": "LongBuffer", "int32": "IntBuffer"}
_SWIFT = {"float32": (".float", "Float"), "int64": (".int64", "Int64"), "int32": (".int32", "Int32")}


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """A program: `language` names it, `fence` marks its code in Markdown, `before` is what it needs, in words."""

    language: str
    fence: str
    before: str
    code: str


def snippets(interface: Interface) -> list[Snippet]:
    """A program for each language that has the types of the file's inputs; Python has them all."""
    made = [python(interface)]
    types = {port.dtype for port in interface.inputs}
    made += [
        write(interface)
        for known, write in ((_JAVASCRIPT, javascript), (_CPP, cpp), (_KOTLIN, android), (_SWIFT, ios))
        if types <= known.keys()
    ]
    return made


def netron(interface: Interface) -> str:
    """The command that shows the graph in a browser."""
    return f"pip install netron && netron {_shell(interface.file)}"


def python(interface: Interface) -> Snippet:
    """The file run by ONNX Runtime on zeros."""
    feeds = "\n".join(
        f"    {_text(port.name)}: np.zeros({_tuple(port.example)}, dtype={_text(port.dtype)}),  # {port.sizes}"
        for port in interface.inputs
    )
    code = f"""\
import numpy as np
import onnxruntime as ort

session = ort.InferenceSession({_text(interface.file)}, providers=["CPUExecutionProvider"])
inputs = {{
{feeds}
}}
names = [output.name for output in session.get_outputs()]
outputs = dict(zip(names, session.run(names, inputs)))
for name, value in outputs.items():
    print(name, value.shape, value.dtype)"""
    return Snippet(language="Python", fence="python", before="pip install onnxruntime", code=code)


def javascript(interface: Interface) -> Snippet:
    """The same in Node; in a browser the calls are those of onnxruntime-web."""
    feeds = "\n".join(
        f"    {_text(port.name)}: new ort.Tensor({_text(port.dtype)}, "
        f"new {_JAVASCRIPT[port.dtype]}({math.prod(port.example)}), [{_list(port.example)}]),"
        for port in interface.inputs
    )
    code = f"""\
const ort = require("onnxruntime-node"); // in a browser: import * as ort from "onnxruntime-web"

async function main() {{
  const session = await ort.InferenceSession.create({_text(interface.file)});
  const outputs = await session.run({{
{feeds}
  }});
  for (const name of session.outputNames) console.log(name, outputs[name].dims, outputs[name].type);
}}

main();"""
    return Snippet(language="JavaScript", fence="javascript", before="npm install onnxruntime-node", code=code)


def cpp(interface: Interface) -> Snippet:
    """The same in C++ with the header of ONNX Runtime's releases."""
    parts = []
    for number, port in enumerate(interface.inputs):
        kind, count = _CPP[port.dtype], math.prod(port.example)
        parts.append(
            f"  std::array<{kind}, {count}> values_{number}{{}};  // {_one_line(port)}\n"
            f"  std::array<int64_t, {len(port.example)}> shape_{number}{{{_list(port.example)}}};\n"
            f"  inputs.push_back(Ort::Value::CreateTensor<{kind}>(\n"
            f"      memory, values_{number}.data(), values_{number}.size(), shape_{number}.data(), "
            f"shape_{number}.size()));"
        )
    code = f"""\
#include <array>
#include <cstdint>
#include <iostream>
#include <vector>

#include <onnxruntime_cxx_api.h>

int main() {{
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "app");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);
  Ort::Session session(env, ORT_TSTR({_text(interface.file)}), options);
  Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);

  std::vector<Ort::Value> inputs;
{chr(10).join(parts)}
  const char* input_names[] = {{{", ".join(_text(port.name) for port in interface.inputs)}}};
  const char* output_names[] = {{{", ".join(_text(port.name) for port in interface.outputs)}}};

  std::vector<Ort::Value> outputs = session.Run(
      Ort::RunOptions{{nullptr}}, input_names, inputs.data(), inputs.size(), output_names, {len(interface.outputs)});
  for (size_t i = 0; i < outputs.size(); ++i) {{
    std::cout << output_names[i];
    for (int64_t size : outputs[i].GetTensorTypeAndShapeInfo().GetShape()) std::cout << " " << size;
    std::cout << "\\n";
  }}
}}"""
    before = "g++ -std=c++17 app.cpp -I include -L lib -l onnxruntime, with a release of ONNX Runtime"
    return Snippet(language="C++", fence="cpp", before=before, code=code)


def android(interface: Interface) -> Snippet:
    """The calls in Kotlin."""
    feeds = "\n".join(
        f"        {_kotlin(port.name)} to OnnxTensor.createTensor(env, {_KOTLIN[port.dtype]}.allocate("
        f"{math.prod(port.example)}), longArrayOf({_list(port.example)})),"
        for port in interface.inputs
    )
    code = f"""\
// implementation("com.microsoft.onnxruntime:onnxruntime-android:latest.release")
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import java.nio.*

fun run(model: ByteArray) {{ // context.assets.open({_kotlin(interface.file)}).readBytes()
    val env = OrtEnvironment.getEnvironment()
    val session = env.createSession(model)
    val inputs = mapOf(
{feeds}
    )
    session.run(inputs).use {{ outputs -> outputs.forEach {{ println("${{it.key}} ${{it.value.info}}") }} }}
}}"""
    before = "onnxruntime-android; not run where the report was made"
    return Snippet(language="Android (Kotlin)", fence="kotlin", before=before, code=code)


def ios(interface: Interface) -> Snippet:
    """The calls in Swift."""
    parts = []
    for port in interface.inputs:
        kind, swift = _SWIFT[port.dtype]
        parts.append(
            f"    {_swift(port.name)}: try ORTValue(\n"
            f"        tensorData: NSMutableData(length: {math.prod(port.example)} * MemoryLayout<{swift}>.size)!,\n"
            f"        elementType: {kind}, shape: [{_list(port.example)}]),"
        )
    stem = interface.file.removesuffix(".onnx")
    code = f"""\
import onnxruntime_objc

let env = try ORTEnv(loggingLevel: .warning)
let path = Bundle.main.path(forResource: {_swift(stem)}, ofType: "onnx")!
let session = try ORTSession(env: env, modelPath: path, sessionOptions: nil)
let inputs = [
{chr(10).join(parts)}
]
let names: Set<String> = [{", ".join(_swift(port.name) for port in interface.outputs)}]
let outputs = try session.run(withInputs: inputs, outputNames: names, runOptions: nil)"""
    before = "onnxruntime-objc; not run where the report was made"
    return Snippet(language="iOS (Swift)", fence="swift", before=before, code=code)


def _text(value: str) -> str:
    """A string of Python, JavaScript and C++, which agree on JSON's escapes where all else is ASCII."""
    return json.dumps(value)


def _kotlin(value: str) -> str:
    return _text(value).replace("$", "\\$")


def _swift(value: str) -> str:
    # Swift writes code points as \\u{...}; JSON escapes non-ASCII as \\uXXXX.
    return json.dumps(value, ensure_ascii=False)


def _one_line(port: Port) -> str:
    """The sizes, for a comment that nothing in them may end or continue."""
    return port.sizes.replace("\\", "/").replace("?", "any")


def _tuple(sizes: tuple[int, ...]) -> str:
    return f"({_list(sizes)}{',' if len(sizes) == 1 else ''})"


def _list(sizes: tuple[int, ...]) -> str:
    return ", ".join(map(str, sizes))


def _shell(value: str) -> str:
    import shlex

    return shlex.quote(value)
