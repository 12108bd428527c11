from twisted.application.service import ServiceMaker

aigw = ServiceMaker("AI Gateway", "aigw.tap", "An OpenAI-compatible gateway with fallback between providers.", "aigw")
